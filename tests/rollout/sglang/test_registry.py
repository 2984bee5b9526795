"""The folder of registered servers: whatever lies in it, and whoever writes at the same time."""

import json
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_srpo.errors import EngineError
from megatron_srpo.rollout.sglang import registry as registries
from megatron_srpo.rollout.sglang.registry import Entry, Registry, new_incarnation, parse_entry


def make_entry(slot: int = 0, **values: str) -> Entry:
    defaults = {
        "url": f"http://node{slot + 1}:30000",
        "incarnation": new_incarnation(),
        "state": "serving",
        "host": "node7",
        "job": "12_0",
        "started": "2026-11-22T10:00:00.000+00:00",
    }
    return Entry(slot=slot, pid=4711, **{**defaults, **values})  # type: ignore[arg-type]


class TestEntries:
    def test_what_was_written_is_read(self, tmp_path: Path) -> None:
        registry = Registry(tmp_path / "new" / "servers")
        entries = {slot: make_entry(slot) for slot in (0, 2, 1234)}
        for entry in entries.values():
            registry.write(entry)
        assert registry.entries() == registry.serving() == entries
        assert registry.entry(2) == entries[2] and registry.entry(1) is None
        names = {path.name for path in registry.folder.iterdir()}
        assert names == {"server-000.json", "server-002.json", "server-1234.json"}, "nothing else is left"

    def test_a_lost_server_does_not_serve(self, tmp_path: Path) -> None:
        registry, entry = Registry(tmp_path), make_entry()
        registry.write(entry)
        registry.mark_lost(0, entry.incarnation)
        assert registry.entries() == {0: replace(entry, state="lost")} and registry.serving() == {}

    def test_a_slot_of_another_is_not_marked(self, tmp_path: Path) -> None:
        registry, entry = Registry(tmp_path), make_entry()
        registry.mark_lost(0, entry.incarnation)  # nothing is there
        registry.write(entry)
        registry.mark_lost(0, new_incarnation())
        assert registry.serving() == {0: entry}

    @given(
        st.integers(0, 5000), st.text(max_size=20), st.text(max_size=20), st.sampled_from(["serving", "lost"])
    )
    def test_any_entry_survives(self, slot: int, host: str, job: str, state: str) -> None:
        entry = make_entry(slot, url="http://[::1]:1", host=host, job=job, state=state)
        assert parse_entry(json.dumps(asdict(entry)), slot) == entry

    def test_a_reader_never_sees_half_an_entry(self, tmp_path: Path) -> None:
        bad: list[str] = []
        registry, over = Registry(tmp_path, bad.append), threading.Event()
        registry.write(make_entry())

        def write() -> None:
            while not over.is_set():
                registry.write(make_entry(host="x" * 5000))

        with ThreadPoolExecutor(2) as pool:
            writers = [pool.submit(write) for _ in range(2)]
            assert all(registry.entry(0) is not None for _ in range(300))
            over.set()
            for writer in writers:
                writer.result()
        assert bad == []


class TestBadFiles:
    @pytest.mark.parametrize(
        ("change", "why"),
        [
            ("{", "not JSON"),
            ("", "not JSON"),
            ("[" * 100_000, "not JSON"),
            ("[]", "not a JSON object"),
            ({"slot": 1}, "it says slot 1"),
            ({"slot": True}, "slot = True; expected int"),
            ({"pid": None}, "pid = None; expected int"),
            ({"url": "192.0.2.1:30000"}, "is not http://host:port"),
            ({"url": "http://h:" + "9" * 5000}, "is not http://host:port"),
            ({"incarnation": ""}, "incarnation is empty"),
            ({"state": "asleep"}, "state = 'asleep'; expected serving or lost"),
        ],
    )
    def test_each_is_an_empty_slot_and_told_once(
        self, tmp_path: Path, change: str | dict[str, object], why: str
    ) -> None:
        told: list[str] = []
        registry, good = Registry(tmp_path, told.append), make_entry(3)
        registry.write(good)
        text = change if isinstance(change, str) else json.dumps({**asdict(make_entry()), **change})
        (tmp_path / "server-000.json").write_text(text)
        for _ in range(3):
            assert registry.entries() == {3: good} and registry.entry(0) is None
        (line,) = told
        assert "server-000.json is ignored" in line and why in line

    def test_other_files_are_nobodys(self, tmp_path: Path) -> None:
        told: list[str] = []
        registry = Registry(tmp_path, told.append)
        for name in (".server-000.json.abc", "server-0.json", "server-000.json~", "close", "notes.txt"):
            (tmp_path / name).write_text("{")
        assert registry.entries() == {} and told == []

    def test_what_cannot_be_read_is_told(self, tmp_path: Path) -> None:
        told: list[str] = []
        registry = Registry(tmp_path / "servers", told.append)
        (tmp_path / "servers" / "server-000.json").mkdir()
        (tmp_path / "servers" / "server-001.json").write_bytes(b"\xff\xfe")
        assert registry.entries() == {} and len(told) == 2

    def test_a_folder_that_is_gone(self, tmp_path: Path) -> None:
        told: list[str] = []
        registry = Registry(tmp_path / "servers", told.append)
        (tmp_path / "servers").rmdir()
        assert registry.entries() == registry.entries() == {} and len(told) == 1
        with pytest.raises(EngineError, match=r"server-000\.json cannot be written"):
            registry.write(make_entry())

    def test_a_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(EngineError, match=r"cannot be made .*rollout\.sglang\.registry"):
            Registry(tmp_path / "file" / "servers")

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.binary(max_size=200))
    def test_any_bytes(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "server-000.json").write_bytes(content)
        assert Registry(tmp_path, lambda line: None).entries() == {}


class TestKey:
    def test_all_get_the_same_and_nobody_else_may_read_it(self, tmp_path: Path) -> None:
        with ThreadPoolExecutor(8) as pool:
            keys = set(pool.map(lambda _: Registry(tmp_path).api_key(), range(8)))
        (key,) = keys
        assert len(key) >= 32
        assert stat.S_IMODE((tmp_path / "api_key").stat().st_mode) == 0o600

    def test_one_that_is_just_being_written_is_waited_for(self, tmp_path: Path) -> None:
        (tmp_path / "api_key").touch()
        writer = threading.Timer(0.3, (tmp_path / "api_key").write_text, ["the key\n"])
        writer.start()
        assert Registry(tmp_path).api_key() == "the key"
        writer.join()

    def test_one_that_stays_empty(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(registries, "_KEY_WAIT_S", 0.1)
        (tmp_path / "api_key").touch()
        with pytest.raises(EngineError, match="api_key is empty; remove it"):
            Registry(tmp_path).api_key()

    def test_one_that_cannot_be_read(self, tmp_path: Path) -> None:
        (tmp_path / "api_key").mkdir()
        with pytest.raises(EngineError, match="api_key cannot be used"):
            Registry(tmp_path).api_key()


def test_closing(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    assert not registry.is_closed
    (tmp_path / "close").touch()
    assert registry.is_closed
