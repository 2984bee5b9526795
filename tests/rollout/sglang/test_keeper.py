"""Keeping one machine's servers and their entries: with stand-ins that start in a moment."""

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from megatron_srpo.config.sglang import SGLangConfig
from megatron_srpo.errors import EngineError
from megatron_srpo.rollout.sglang import keeper as keepers
from megatron_srpo.rollout.sglang.endpoint import Endpoint
from megatron_srpo.rollout.sglang.keeper import Keeper
from megatron_srpo.rollout.sglang.process import HttpProcess, Reply, fetch, serves
from megatron_srpo.rollout.sglang.registry import Entry, Registry
from tests.rollout.sglang.test_process import STAND_IN
from tests.rollout.sglang.test_registry import make_entry
from tests.waiting import wait_until


class Machine:
    """Runs a keeper of slots 2 and 3 in a thread."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.registry = folder, Registry(folder / "servers")
        self.options: list[str] = []
        self.places: list[tuple[int, int | None]] = []
        self.lines: list[str] = []
        self.error: EngineError | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def server(
        self,
        index: int,
        config: SGLangConfig,
        arguments: Sequence[str],
        log_dir: Path,
        api_key: str,
        place: int | None = None,
    ) -> HttpProcess:
        """Stand for ``sglang_server``."""
        self.places.append((index, place))

        def command(port: int) -> list[str]:
            return [sys.executable, str(STAND_IN), f"--port={port}", f"--key={api_key}", *self.options]

        return HttpProcess(
            f"SGLang server {index}",
            command,
            serves,
            environment=os.environ,
            log_path=log_dir / f"sglang-{index}.log",
            host=config.host,
            api_key=api_key,
            start_timeout_s=60.0,
        )

    def start(self, **config: Any) -> None:
        chosen = SGLangConfig(servers=4, hang_timeout_s=3.0, **config)
        keeper = Keeper(
            chosen, "model", "float32", self.folder, self.registry, range(2, 4), self.lines.append
        )
        self._thread = threading.Thread(target=self._run, args=(keeper,))
        self._thread.start()

    def _run(self, keeper: Keeper) -> None:
        try:
            keeper.run(self._ended.is_set)
        except EngineError as error:
            self.error = error

    def end(self) -> None:
        self._ended.set()
        self.join()

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join(60)
            assert not self._thread.is_alive()

    def serving(self, slots: set[int]) -> dict[int, Entry]:
        wait_until(lambda: set(self.registry.serving()) == slots or self.error is not None, f"slots {slots}")
        return self.registry.serving()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    monkeypatch.setattr(keepers, "server_arguments", lambda config, model, dtype: [])
    monkeypatch.setattr(keepers, "sglang_server", machine.server)
    monkeypatch.setattr(keepers, "_POLL_S", 0.02)
    monkeypatch.setattr(keepers, "_LOOK_EVERY_S", 0.1)
    yield machine
    machine.end()


def test_servers_register_and_take_their_leave(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    machine.start()
    entries = machine.serving({2, 3})
    assert machine.places == [(2, 0), (3, 1)], "the first slot here uses the first GPUs"
    for slot, entry in entries.items():
        reply = fetch(Endpoint(entry.url, api_key=machine.registry.api_key()), "/server_info", 10.0)
        assert isinstance(reply, Reply) and reply.json()["pid"] == entry.pid
        assert (
            entry.job == "77_0"
            and entry.started > "2026"
            and f"server {slot} serves at" in "".join(machine.lines)
        )
    machine.end()
    assert machine.error is None
    assert [entry.state for entry in machine.registry.entries().values()] == ["lost", "lost"]
    assert not any(psutil.pid_exists(entry.pid) for entry in entries.values())


def test_closing_the_registry_ends_it(machine: Machine) -> None:
    machine.start()
    machine.serving({2, 3})
    (machine.registry.folder / "close").touch()
    machine.join()
    assert machine.error is None and machine.registry.serving() == {}


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_one_that_dies_or_freezes_is_started_anew(machine: Machine, how: signal.Signals) -> None:
    machine.start()
    before = machine.serving({2, 3})
    os.kill(before[3].pid, how)
    wait_until(lambda: machine.registry.serving().get(3, before[3]) != before[3], "another start")
    after = machine.registry.serving()
    assert after[2] == before[2], "the other one is left alone"
    assert after[3].incarnation != before[3].incarnation and after[3].pid != before[3].pid
    condition = "dead" if how is signal.SIGKILL else "frozen"
    assert f"SGLang server 3 at {before[3].url} is {condition}; starting it again" in machine.lines


def test_one_that_cannot_be_kept_up_ends_all(machine: Machine) -> None:
    machine.start(max_restarts=0)
    entries = machine.serving({2, 3})
    os.kill(entries[2].pid, signal.SIGKILL)
    machine.join()
    assert "is dead after 0 restarts (sglang.max_restarts)" in str(machine.error)
    assert "listening" in str(machine.error), "the log's end is shown"
    assert machine.registry.serving() == {} and not psutil.pid_exists(entries[3].pid)


def test_one_that_does_not_start_ends_all(machine: Machine) -> None:
    machine.options = ["--fail=5"]
    machine.start()
    machine.join()
    assert "ended with exit code 5 while starting" in str(machine.error)


@pytest.mark.parametrize("how", ["emptied", "taken over and lost"])
def test_an_emptied_slot_is_filled_again(machine: Machine, how: str) -> None:
    """Whoever took this machine for lost was wrong."""
    machine.start()
    entries = machine.serving({2, 3})
    if how == "emptied":
        (machine.registry.folder / "server-002.json").unlink()
    else:
        machine.registry.write(make_entry(2, state="lost"))
    assert machine.serving({2, 3}) == entries


def test_a_slot_that_another_machine_took_is_left_to_it(machine: Machine) -> None:
    machine.start()
    entries = machine.serving({2, 3})
    other = make_entry(2)
    machine.registry.write(other)
    machine.join()
    assert f"was taken over by {other.url} on node7" in str(machine.error)
    assert machine.registry.serving() == {2: other}
    assert not psutil.pid_exists(entries[2].pid)
