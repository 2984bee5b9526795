"""Several servers together: with stand-ins that start in a moment, then two of SGLang behind its router."""

import os
import signal
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from megatron_srpo.config.sglang import SGLangConfig
from megatron_srpo.errors import EngineError
from megatron_srpo.rollout.sglang import external as externals
from megatron_srpo.rollout.sglang import fleet as fleets
from megatron_srpo.rollout.sglang import router as routing
from megatron_srpo.rollout.sglang.endpoint import Endpoint
from megatron_srpo.rollout.sglang.external import reach, read_api_key
from megatron_srpo.rollout.sglang.fleet import Fleet
from megatron_srpo.rollout.sglang.process import HttpProcess, Reply, fetch, serves, sglang_server
from megatron_srpo.rollout.sglang.watch import Condition
from tests.rollout.sglang.test_process import STAND_IN, make_server
from tests.rollout.sglang.test_watch import scheduler_of
from tests.sglang_servers import API_KEY, TINY_MODEL, require_sglang
from tests.waiting import wait_until

needs_router = pytest.mark.skipif(
    not routing.is_installed(), reason="needs sglang-router (make install-sglang)"
)
HEALTHY, DEAD, FROZEN = Condition.HEALTHY, Condition.DEAD, Condition.FROZEN


class StandIns:
    """Puts stand-ins in the place of SGLang's servers; ``extra[index]`` are options of server ``index``."""

    def __init__(self) -> None:
        self.extra: dict[int, list[str]] = {}
        self.keys: set[str] = set()

    def make(
        self, index: int, config: SGLangConfig, arguments: Sequence[str], log_dir: Path, api_key: str
    ) -> HttpProcess:
        self.keys.add(api_key)

        def command(port: int) -> list[str]:
            extra = self.extra.get(index, [])
            return [sys.executable, str(STAND_IN), f"--port={port}", f"--key={api_key}", *extra]

        return HttpProcess(
            f"SGLang server {index}",
            command,
            serves,
            environment=os.environ,
            log_path=log_dir / f"sglang-{index}.log",
            host=config.host,
            api_key=api_key,
            start_timeout_s=config.start_timeout_s,
        )


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> StandIns:
    stand_ins = StandIns()
    monkeypatch.setattr(fleets, "server_arguments", lambda config, model, dtype: [])
    monkeypatch.setattr(fleets, "sglang_server", stand_ins.make)
    return stand_ins


def make_fleet(tmp_path: Path, lines: list[str] | None = None, **config: Any) -> Fleet:
    defaults = {"router": "off", "start_timeout_s": 60.0, "hang_timeout_s": 1.5}
    report = (lines if lines is not None else []).append
    return Fleet(SGLangConfig(**{**defaults, **config}), "model", "float32", tmp_path, on_progress=report)


def kill(fleet: Fleet, index: int, how: int = signal.SIGKILL) -> None:
    os.kill(fleet._servers[index].pid, how)


def pids(fleet: Fleet) -> list[int]:
    return [server.pid for server in fleet._servers if server.pid is not None]


class TestStart:
    def test_all_serve(self, tmp_path: Path, stand_ins: StandIns) -> None:
        lines: list[str] = []
        with make_fleet(tmp_path, lines, servers=3) as fleet:
            assert len({endpoint.url for endpoint in fleet.endpoints}) == 3
            assert all(
                isinstance(fetch(endpoint, "/server_info", 10.0), Reply) for endpoint in fleet.endpoints
            )
            assert fleet.generation == fleet.endpoints
            assert fleet.conditions() == (HEALTHY,) * 3 and fleet.lost() == ()
            running = pids(fleet)
        assert not any(psutil.pid_exists(pid) for pid in running)
        assert lines[0].startswith("SGLang: 0 of 3 servers ready")
        assert lines[-1].startswith("SGLang: 3 of 3 servers ready after ")
        assert {path.name for path in tmp_path.iterdir()} == {"sglang-0.log", "sglang-1.log", "sglang-2.log"}

    def test_every_run_has_a_key_of_its_own(self, tmp_path: Path, stand_ins: StandIns) -> None:
        for _ in range(2):
            with make_fleet(tmp_path, servers=2) as fleet:
                stranger = Endpoint(fleet.endpoints[0].url, api_key="guess")
                reply = fetch(stranger, "/server_info", 10.0)
                assert isinstance(reply, Reply) and reply.status == 401
        assert len(stand_ins.keys) == 2
        assert min(map(len, stand_ins.keys)) >= 32

    def test_one_that_fails_ends_the_others(self, tmp_path: Path, stand_ins: StandIns) -> None:
        stand_ins.extra[1] = ["--lines=3", "--fail=9"]
        fleet = make_fleet(tmp_path, servers=3)
        with pytest.raises(EngineError, match=r"SGLang server 1 at http\S+ ended with exit code 9"), fleet:
            pytest.fail("it must not get here")
        assert pids(fleet) == []

    def test_close_is_idempotent(self, tmp_path: Path, stand_ins: StandIns) -> None:
        fleet = make_fleet(tmp_path)
        fleet.close()
        with fleet:
            (pid,) = pids(fleet)
        fleet.close()
        assert not psutil.pid_exists(pid)


class TestRestart:
    def test_a_dead_server(self, tmp_path: Path, stand_ins: StandIns) -> None:
        lines: list[str] = []
        with make_fleet(tmp_path, lines, servers=2) as fleet:
            before, first = fleet.endpoints, pids(fleet)
            kill(fleet, 1)
            wait_until(lambda: fleet.lost() == (1,), "loss")
            assert fleet.conditions() == (HEALTHY, DEAD)
            assert fleet.restart(1) == before[1], "its port was free again"
            assert fleet.endpoints == before and fleet.lost() == ()
            assert pids(fleet)[0] == first[0] and pids(fleet)[1] != first[1]
            assert isinstance(fetch(before[1], "/server_info", 10.0), Reply)
            assert lines[-1].startswith("SGLang server 1 was dead; restarted in ")

    def test_a_frozen_server(self, tmp_path: Path, stand_ins: StandIns) -> None:
        with make_fleet(tmp_path, servers=2) as fleet:
            (_, suspended) = pids(fleet)
            kill(fleet, 1, signal.SIGSTOP)
            wait_until(lambda: fleet.lost() == (1,), "loss")
            assert fleet.conditions() == (HEALTHY, FROZEN)
            assert psutil.Process(suspended).status() == psutil.STATUS_STOPPED
            fleet.restart(1)
            assert fleet.lost() == () and not psutil.pid_exists(suspended)

    def test_one_that_moves_again_is_still_lost(self, tmp_path: Path, stand_ins: StandIns) -> None:
        """It may have missed a weight update while it was suspended."""
        lines: list[str] = []
        with make_fleet(tmp_path, lines, servers=2) as fleet:
            kill(fleet, 0, signal.SIGSTOP)
            wait_until(lambda: fleet.lost() == (0,), "loss")
            kill(fleet, 0, signal.SIGCONT)
            wait_until(lambda: fleet.conditions() == (HEALTHY, HEALTHY), "recovery")
            assert fleet.lost() == (0,)
            fleet.restart(0)
            assert fleet.lost() == ()
            assert lines[-1].startswith("SGLang server 0 was frozen; restarted in ")

    def test_finished_requests_are_signs_of_life(self, tmp_path: Path, stand_ins: StandIns) -> None:
        with make_fleet(tmp_path, servers=2) as fleet:
            kill(fleet, 0, signal.SIGSTOP)
            wait_until(lambda: fleet.conditions() == (FROZEN, HEALTHY), "loss")
            fleet.note_progress(fleet.endpoints[1].url)
            fleet.note_progress("http://elsewhere:1")
            assert fleet.conditions() == (FROZEN, HEALTHY)
            fleet.note_progress(fleet.endpoints[0].url)
            assert fleet.conditions() == (HEALTHY, HEALTHY)

    def test_not_more_often_than_allowed(self, tmp_path: Path, stand_ins: StandIns) -> None:
        with make_fleet(tmp_path, servers=2, max_restarts=1) as fleet:
            for index in (0, 1):  # each server has its own allowance
                kill(fleet, index)
                wait_until(lambda: bool(fleet.lost()), "loss")
                fleet.restart(index)
            kill(fleet, 1)
            wait_until(lambda: bool(fleet.lost()), "loss")
            with pytest.raises(EngineError) as caught:
                fleet.restart(1)
            message = str(caught.value)
            assert (
                "SGLang server 1 at" in message
                and "is dead after 1 restarts (sglang.max_restarts)" in message
            )
            assert "listening" in message, "the log's end is shown"

    def test_one_that_does_not_start_again(self, tmp_path: Path, stand_ins: StandIns) -> None:
        with make_fleet(tmp_path, max_restarts=5) as fleet:
            kill(fleet, 0)
            wait_until(lambda: fleet.lost() == (0,), "loss")
            stand_ins.extra[0] = ["--fail=4"]
            with pytest.raises(EngineError, match="ended with exit code 4 while starting"):
                fleet.restart(0)
            assert fleet.lost() == (0,)
            stand_ins.extra[0] = []
            fleet.restart(0)
            assert fleet.lost() == ()

    def test_on_another_port_where_its_own_is_taken(self, tmp_path: Path, stand_ins: StandIns) -> None:
        import socket

        with make_fleet(tmp_path) as fleet:
            before = fleet.endpoints[0]
            kill(fleet, 0)
            wait_until(lambda: fleet.lost() == (0,), "loss")
            with socket.create_server(("127.0.0.1", int(before.url.rpartition(":")[2]))):
                after = fleet.restart(0)
            assert after.url != before.url and fleet.endpoints == (after,)
            assert fleet.lost() == ()


@needs_router
class TestRouter:
    @pytest.fixture
    def fleet(self, tmp_path: Path, stand_ins: StandIns) -> Iterator[Fleet]:
        with make_fleet(tmp_path, servers=2, router="auto", max_restarts=1) as fleet:
            yield fleet

    def routed(self, fleet: Fleet) -> set[str]:
        assert fleet._routes.router is not None
        return set(fleet._routes.router.workers)

    def test_requests_go_to_it_and_weights_do_not(self, fleet: Fleet) -> None:
        (front,) = fleet.generation
        assert front not in fleet.endpoints
        assert self.routed(fleet) == {endpoint.url for endpoint in fleet.endpoints}
        reply = fetch(front, "/generate", 30.0, "POST", {"input_ids": [1], "sampling_params": {}})
        assert isinstance(reply, Reply) and reply.status == 200

    def test_a_lost_server_leaves_it_and_comes_back_with_the_weights(self, fleet: Fleet) -> None:
        healthy, killed = (endpoint.url for endpoint in fleet.endpoints)
        kill(fleet, 1)
        wait_until(lambda: fleet.lost() == (1,), "loss")
        assert self.routed(fleet) == {healthy}
        fleet.restart(1, put_back=False)
        assert self.routed(fleet) == {healthy}, "its weights are old"
        fleet.put_back(1)
        fleet.put_back(1)
        assert self.routed(fleet) == {healthy, killed}

    def test_a_restart_puts_it_back_unless_told_otherwise(self, fleet: Fleet) -> None:
        kill(fleet, 0)
        wait_until(lambda: fleet.lost() == (0,), "loss")
        fleet.restart(0)
        assert self.routed(fleet) == {endpoint.url for endpoint in fleet.endpoints}

    def test_it_is_replaced_when_it_dies(self, fleet: Fleet) -> None:
        assert fleet._routes.router is not None
        front = fleet.generation
        kill(fleet, 1)
        os.kill(fleet._routes.router._process.pid, signal.SIGKILL)
        wait_until(
            lambda: fleet.conditions() == (HEALTHY, DEAD) and not fleet._routes.router.is_alive(), "deaths"
        )
        assert fleet.lost() == (1,)
        assert fleet.generation == front and self.routed(fleet) == {fleet.endpoints[0].url}
        os.kill(fleet._routes.router._process.pid, signal.SIGKILL)
        wait_until(lambda: not fleet._routes.router.is_alive(), "death")
        with pytest.raises(EngineError, match=r"router at http\S+ is dead after 1 restarts"):
            fleet.lost()

    @pytest.mark.parametrize(("wish", "servers"), [("off", 2), ("auto", 1)])
    def test_where_there_is_none(self, tmp_path: Path, stand_ins: StandIns, wish: str, servers: int) -> None:
        with make_fleet(tmp_path, servers=servers, router=wish) as fleet:
            assert fleet.generation == fleet.endpoints


def test_auto_does_without_a_router_that_is_not_installed(
    tmp_path: Path, stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routing, "is_installed", lambda: False)
    with make_fleet(tmp_path, servers=2, router="auto") as fleet:
        assert fleet.generation == fleet.endpoints
    with pytest.raises(EngineError, match="make install-sglang"):
        make_fleet(tmp_path, servers=2, router="on").__enter__()


class TestExternal:
    @pytest.fixture
    def external(self, tmp_path: Path) -> Iterator[HttpProcess]:
        server = make_server(tmp_path)
        server.start()
        server.wait_ready()
        yield server
        server.stop()

    @pytest.fixture
    def key_file(self, tmp_path: Path) -> str:
        path = tmp_path / "key"
        path.write_text(f" {API_KEY}\n")
        return str(path)

    def test_it_is_used_and_left_running(self, tmp_path: Path, external: HttpProcess, key_file: str) -> None:
        config = {"urls": (external.endpoint.url,), "api_key_file": key_file, "tensor_parallel": 4}
        with make_fleet(tmp_path, router="auto", **config) as fleet:
            assert fleet.endpoints == (Endpoint(external.endpoint.url, 4, API_KEY),)
            assert fleet.generation == fleet.endpoints and fleet.lost() == ()
        assert external.is_alive()

    def test_one_that_is_lost_is_named_not_restarted(
        self, tmp_path: Path, external: HttpProcess, key_file: str
    ) -> None:
        config = {"urls": (external.endpoint.url,), "api_key_file": key_file}
        with make_fleet(tmp_path, router="auto", **config) as fleet:
            external.stop()
            wait_until(lambda: fleet.lost() == (0,), "loss")
            with pytest.raises(EngineError) as caught:
                fleet.restart(0)
            message = str(caught.value)
            assert f"{external.endpoint.url} is dead; it was not started here" in message

    def test_one_that_is_not_reached(self, tmp_path: Path) -> None:
        with pytest.raises(EngineError, match=r"http://127\.0\.0\.1:9 is not reached .*correct the URL"):
            make_fleet(tmp_path, router="auto", urls=("http://127.0.0.1:9",)).__enter__()

    def test_a_wrong_key(self, external: HttpProcess) -> None:
        url = external.endpoint.url
        with pytest.raises(
            EngineError, match=r"refuses the key given in sglang\.api_key_file \(status 401\)"
        ):
            reach(Endpoint(url, api_key="wrong"))
        with pytest.raises(EngineError, match=r"refuses no key; set sglang\.api_key_file"):
            reach(Endpoint(url))

    @pytest.mark.parametrize("reply", [Reply(404, b"<html>"), Reply(200, b"<html>"), Reply(500, b"")])
    def test_another_kind_of_server(self, reply: Reply, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(externals, "fetch", lambda *given: reply)
        with pytest.raises(EngineError, match=r"http://h:1 answers .*is it an SGLang server\?"):
            reach(Endpoint("http://h:1"))

    def test_key_files(self, tmp_path: Path, key_file: str) -> None:
        assert read_api_key("") is None
        assert read_api_key(key_file) == API_KEY
        with pytest.raises(EngineError, match="cannot be read"):
            read_api_key(str(tmp_path / "absent"))
        (tmp_path / "empty").write_text("\n")
        with pytest.raises(EngineError, match="is empty"):
            read_api_key(str(tmp_path / "empty"))
        (tmp_path / "binary").write_bytes(b"\xff\xfe")
        with pytest.raises(EngineError, match="cannot be read"):
            read_api_key(str(tmp_path / "binary"))


class TestCommand:
    @pytest.mark.parametrize(("cuda", "expected"), [(True, "--base-gpu-id=7"), (False, None)])
    def test_servers_side_by_side_use_different_gpus(
        self, cuda: bool, expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("megatron_srpo.platform.has_cuda", lambda: cuda)
        config = SGLangConfig(servers=3, tensor_parallel=3, options={"base_gpu_id": 1})
        command = sglang_server(2, config, ["--a"], tmp_path, "secret")._command(20_000)
        gpus = [word for word in command if word.startswith("--base-gpu-id")]
        assert gpus == ([expected] if expected else [])
        assert {"--a", "--host=127.0.0.1", "--port=20000"} <= set(command)
        assert not any("secret" in word for word in command)


@pytest.mark.slow
@needs_router
def test_two_real_servers_behind_the_router(tmp_path: Path) -> None:
    """One server's scheduler is suspended, the other killed; what is sampled stays the same."""
    require_sglang()
    config = SGLangConfig(servers=2, hang_timeout_s=6.0, max_restarts=1)
    with Fleet(config, TINY_MODEL, "float32", tmp_path) as fleet:
        (front,) = fleet.generation
        before = fleet.endpoints
        responses = [sample(endpoint) for endpoint in (*before, front)]
        assert responses[0] == responses[1] == responses[2], "a seed decides, not the server"
        assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in tmp_path.iterdir())

        family = psutil.Process(fleet._servers[1].pid).children(recursive=True)
        scheduler_of(fleet._servers[1]).suspend()
        wait_until(lambda: fleet.lost() == (1,), "frozen server")
        assert fleet.conditions() == (HEALTHY, FROZEN)
        assert sample(front) == responses[0], "the other one serves"
        fleet.restart(1, put_back=False)
        assert psutil.wait_procs(family, timeout=10)[1] == []
        fleet.put_back(1)

        kill(fleet, 0)
        wait_until(lambda: fleet.lost() == (0,), "dead server")
        assert sample(front) == responses[0], "the restarted one serves"
        family = [process for server in fleet._servers if server.pid for process in _family(server.pid)]
    assert fleet.endpoints == before
    assert psutil.wait_procs(family, timeout=10)[1] == []


def _family(pid: int) -> list[psutil.Process]:
    if not psutil.pid_exists(pid):
        return []
    return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]


def sample(endpoint: Endpoint) -> list[int]:
    params = {"max_new_tokens": 30, "temperature": 1.0, "ignore_eos": True, "sampling_seed": 77}
    body = {"input_ids": [5, 6, 7], "sampling_params": params}
    reply = fetch(endpoint, "/generate", 300.0, "POST", body)
    assert isinstance(reply, Reply) and reply.status == 200, reply
    return reply.json()["output_ids"]
