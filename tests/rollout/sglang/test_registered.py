"""Servers that come and go, as the run sees them. Stand-ins serve; what is lost is shut down for real."""

import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_srpo.config.sglang import SGLangConfig
from megatron_srpo.errors import ConfigError, EngineError
from megatron_srpo.rollout.sglang import registered
from megatron_srpo.rollout.sglang import router as routing
from megatron_srpo.rollout.sglang.endpoint import Endpoint
from megatron_srpo.rollout.sglang.fleet import Revival
from megatron_srpo.rollout.sglang.lookout import Lookout
from megatron_srpo.rollout.sglang.process import Reply, fetch
from megatron_srpo.rollout.sglang.registered import RegisteredFleet
from megatron_srpo.rollout.sglang.registry import Entry, Registry, new_incarnation
from megatron_srpo.rollout.sglang.watch import Condition
from tests.rollout.sglang.stand_in import Handler
from tests.rollout.sglang.test_registry import make_entry
from tests.waiting import wait_until

HEALTHY, DEAD = Condition.HEALTHY, Condition.DEAD


class Site:
    """A registry, and stand-in servers in its slots."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.registry = Registry(folder / "servers")
        self.key = self.registry.api_key()
        self.servers: dict[str, http.server.ThreadingHTTPServer] = {}
        self.lines: list[str] = []

    def come(self, slot: int, key: str = "", port: int = 0) -> Entry:
        """Start a server and register it."""
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Quiet)
        server.key, server.mute = key or self.key, False  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        entry = make_entry(slot, url=f"http://127.0.0.1:{server.server_port}")
        self.servers[entry.url] = server
        self.registry.write(entry)
        return entry

    def stop(self, url: str) -> None:
        server = self.servers.pop(url)
        server.shutdown()
        server.server_close()

    def empty(self, slot: int) -> None:
        """Do what the launcher does when the slot's machine is gone."""
        (self.registry.folder / f"server-{slot:03d}.json").unlink()

    def fleet(self, **config: Any) -> RegisteredFleet:
        defaults = {"servers": 2, "start_timeout_s": 2.0, "return_timeout_s": 2.0, "hang_timeout_s": 60.0}
        chosen = SGLangConfig(registry=str(self.registry.folder), **{**defaults, **config})
        return RegisteredFleet(chosen, self.folder / "logs", on_progress=self.lines.append)


class Quiet(Handler):
    def log_message(self, *given: Any) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(registered, "_POLL_S", 0.05)
    site = Site(tmp_path)
    yield site
    for url in list(site.servers):
        site.stop(url)


def urls(endpoints: tuple[Endpoint, ...]) -> list[str]:
    return [endpoint.url for endpoint in endpoints]


class TestStart:
    def test_all_slots_filled(self, site: Site) -> None:
        second, first = site.come(1), site.come(0)
        with site.fleet(start_timeout_s=600.0) as fleet:
            assert urls(fleet.endpoints) == [first.url, second.url], "in the order of slots"
            assert fleet.generation == fleet.endpoints
            assert [endpoint.incarnation for endpoint in fleet.endpoints] == [
                first.incarnation,
                second.incarnation,
            ]
            assert fleet.known() == {first.url: HEALTHY, second.url: HEALTHY}
            assert isinstance(fetch(fleet.endpoints[0], "/server_info", 5.0), Reply)
        assert site.lines[-1].startswith("SGLang: 2 of 2 servers registered after ")

    def test_one_that_comes_late(self, site: Site) -> None:
        site.come(0)
        late = threading.Timer(0.3, site.come, [1])
        late.start()
        with site.fleet(start_timeout_s=600.0) as fleet:
            assert len(fleet.endpoints) == 2
        assert [line.split(" servers")[0] for line in site.lines] == ["SGLang: 1 of 2", "SGLang: 2 of 2"]

    def test_fewer_than_slots_when_the_time_is_over(self, site: Site) -> None:
        entry = site.come(1)
        with site.fleet() as fleet:
            assert urls(fleet.endpoints) == [entry.url]

    def test_nobody(self, site: Site) -> None:
        with pytest.raises(EngineError) as caught, site.fleet():
            pytest.fail("it must not get here")
        message = str(caught.value)
        assert (
            "no SGLang server has registered in" in message and "(rollout.sglang.start_timeout_s)" in message
        )
        assert f"megatron-srpo serve --register {site.registry.folder}" in message

    def test_an_entry_of_an_earlier_job_does_not_count(self, site: Site) -> None:
        """Its server is long gone."""
        gone = site.come(0)
        site.stop(gone.url)
        entry = site.come(1)
        with site.fleet() as fleet:
            assert urls(fleet.endpoints) == [entry.url]
        (line,) = [line for line in site.lines if "is registered, but does not answer" in line]
        assert line.startswith(f"SGLang server 0 at {gone.url} ")

    def test_a_port_that_another_server_has_by_now(self, site: Site) -> None:
        young = site.come(1)
        site.registry.write(make_entry(0, url=young.url, started="2020-01-01"))
        with site.fleet() as fleet:
            assert [endpoint.incarnation for endpoint in fleet.endpoints] == [young.incarnation]

    def test_another_key(self, site: Site) -> None:
        site.come(0, key="another")
        site.come(1)
        with site.fleet() as fleet:
            assert len(fleet.endpoints) == 1
        assert any("answers /model_info with status 401" in line for line in site.lines)

    def test_slots_that_the_run_does_not_count(self, site: Site) -> None:
        site.come(0)
        site.come(2)
        with site.fleet(servers=1) as fleet:
            assert len(fleet.endpoints) == 1

    def test_stopping_meanwhile(self, site: Site) -> None:
        fleet = site.fleet(start_timeout_s=600.0)
        fleet._should_stop = lambda: True
        with pytest.raises(EngineError, match="stop requested"), fleet:
            pytest.fail("it must not get here")


class TestRevival:
    """What :meth:`revive` makes of servers 0 and 1 after something has happened to them."""

    @pytest.fixture
    def entries(self, site: Site) -> tuple[Entry, Entry]:
        return site.come(0), site.come(1)

    @pytest.fixture
    def fleet(self, site: Site, entries: tuple[Entry, Entry]) -> Iterator[RegisteredFleet]:
        with site.fleet() as fleet:
            site.lines.clear()
            yield fleet

    Entries = tuple[Entry, Entry]

    def test_nothing_happened(self, site: Site, fleet: RegisteredFleet) -> None:
        assert fleet.revive(()) == Revival(fleet.endpoints, changed=False)
        assert site.lines == []

    @pytest.mark.parametrize("how", ["emptied", "marked lost", "filled by another", "silent"])
    def test_one_is_lost(self, how: str, site: Site, fleet: RegisteredFleet, entries: Entries) -> None:
        lost, stays = entries
        if how == "emptied":
            site.empty(0)
        elif how == "marked lost":
            site.registry.mark_lost(0, lost.incarnation)
        elif how == "filled by another":
            site.registry.write(make_entry(0, url="http://127.0.0.1:9"))
        if how != "silent":
            assert fleet.known() == {lost.url: DEAD, stays.url: HEALTHY}
        revival = fleet.revive({lost.url} if how == "silent" else set())
        assert revival == Revival(fleet.endpoints, changed=True, given_up=True)
        assert urls(revival.endpoints) == [stays.url] and fleet.known() == {stays.url: HEALTHY}
        assert site.lines[0] == f"SGLang server 0 at {lost.url} is lost; 1 of 2 are left"

    def test_another_start_takes_its_place(
        self, site: Site, fleet: RegisteredFleet, entries: Entries
    ) -> None:
        lost, stays = entries
        site.stop(lost.url)
        new = site.come(0, port=int(lost.url.rpartition(":")[2]))
        revival = fleet.revive(())
        assert urls(revival.endpoints) == [new.url, stays.url] and revival.given_up
        assert revival.endpoints[0].incarnation == new.incarnation != lost.incarnation
        assert site.lines[1] == f"SGLang server 0 at {new.url} joins; 2 of 2 servers serve"

    def test_a_newcomer_joins_where_nobody_was_lost(
        self, site: Site, fleet: RegisteredFleet, entries: Entries
    ) -> None:
        site.empty(1)
        assert len(fleet.revive(()).endpoints) == 1
        assert fleet.revive(()).changed is False
        new = site.come(1)
        assert fleet.revive((), admit=False).changed is False, "not in the middle of a publication"
        assert fleet.revive(()) == Revival(fleet.endpoints, changed=True, given_up=False)
        assert urls(fleet.endpoints) == [entries[0].url, new.url]

    def test_one_that_was_silent_comes_back_another_time(
        self, fleet: RegisteredFleet, entries: Entries
    ) -> None:
        """It may have been a cable. Not at once: the publication that it failed would fail again."""
        assert len(fleet.revive({entries[0].url}).endpoints) == 1
        assert len(fleet.revive(()).endpoints) == 2

    def test_with_nobody_left_the_run_waits(
        self, site: Site, fleet: RegisteredFleet, entries: Entries
    ) -> None:
        for slot, entry in enumerate(entries):
            site.stop(entry.url)
            site.empty(slot)
        late = threading.Timer(0.3, site.come, [1])
        late.start()
        revival = fleet.revive((), admit=False)
        assert len(revival.endpoints) == 1 and revival.given_up
        assert "no SGLang server is left; waiting for one to register" in site.lines
        assert site.lines[-1].endswith("joins; 1 of 2 servers serve")

    def test_not_for_ever(self, site: Site, fleet: RegisteredFleet, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(registered, "_SAY_EVERY_S", 0.5)
        site.empty(0)
        site.empty(1)
        with pytest.raises(EngineError, match=r"within 2 s \(rollout\.sglang\.return_timeout_s\)"):
            fleet.revive(())
        assert any(line.startswith("no SGLang server has registered for ") for line in site.lines)

    def test_stopping_ends_the_waiting(self, site: Site, fleet: RegisteredFleet) -> None:
        site.empty(0)
        site.empty(1)
        fleet._should_stop = lambda: True
        with pytest.raises(EngineError, match="stop requested"):
            fleet.revive(())


@pytest.mark.skipif(not routing.is_installed(), reason="needs sglang-router (make install-sglang)")
def test_the_router_follows(site: Site) -> None:
    first, second = site.come(0), site.come(1)
    with site.fleet(router="on", start_timeout_s=60.0) as fleet:
        (front,) = fleet.generation
        assert front not in fleet.endpoints
        router = fleet._routes.router
        assert router is not None and set(router.workers) == {first.url, second.url}
        fleet.take_out(second.url)  # as the guard does, at once
        assert router.workers == (first.url,)
        site.empty(1)
        fleet.revive(())
        third = site.come(1)
        fleet.revive(())
        assert router.workers == (first.url,), "its weights are old"
        fleet.settle()
        assert set(router.workers) == {first.url, third.url}
        reply = fetch(front, "/generate", 30.0, "POST", {"input_ids": [1], "sampling_params": {}})
        assert isinstance(reply, Reply) and reply.status == 200
    assert not router.is_alive()


class TestLookout:
    """Every rank that sends requests looks out; most know servers only by what rank 0 told them."""

    def look(
        self, endpoints: list[Endpoint], registry: Registry | None, test: Callable[[Lookout], None]
    ) -> None:
        lookout = Lookout(endpoints, 60.0, registry)
        try:
            test(lookout)
        finally:
            lookout.stop()

    def test_the_registry_knows_of_a_loss_at_once(self, site: Site) -> None:
        entries = [site.come(0), site.come(1)]
        endpoints = [Endpoint(e.url, 1, site.key, e.incarnation) for e in entries]

        def test(lookout: Lookout) -> None:
            assert set(lookout.known().values()) == {HEALTHY}
            site.empty(1)
            assert lookout.known() == {entries[0].url: HEALTHY, entries[1].url: DEAD}

        self.look(endpoints, site.registry, test)

    def test_without_a_registry_the_servers_are_asked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("megatron_srpo.rollout.sglang.watch._INTERVAL_S", 0.05)
        self.look(
            [Endpoint("http://127.0.0.1:9")],
            None,
            lambda lookout: wait_until(lambda: lookout.known() == {"http://127.0.0.1:9": DEAD}, "death"),
        )


class TestConfig:
    def test_a_registry_excludes_urls_and_their_key(self) -> None:
        with pytest.raises(ConfigError, match="registry = 'servers', but urls names servers too"):
            SGLangConfig(registry="servers", urls=("http://a:1",))
        with pytest.raises(ConfigError, match="api_key_file = 'key' is for external servers"):
            SGLangConfig(registry="servers", api_key_file="key")


def test_incarnations_differ() -> None:
    assert len({new_incarnation() for _ in range(100)}) == 100
