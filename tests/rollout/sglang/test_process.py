"""One server's processes, port and log: with a stand-in that starts in a moment, and with SGLang itself."""

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from megatron_srpo.errors import EngineError
from megatron_srpo.rollout.sglang import process
from megatron_srpo.rollout.sglang.endpoint import Endpoint
from megatron_srpo.rollout.sglang.process import HttpProcess, Reply, fetch, free_port, is_free, serves
from tests.sglang_servers import API_KEY, ROOT
from tests.waiting import wait_until

STAND_IN = Path(__file__).with_name("stand_in.py")
HOST = "127.0.0.1"


def make_server(tmp_path: Path, *options: str, **settings: Any) -> HttpProcess:
    def command(port: int) -> list[str]:
        return [sys.executable, str(STAND_IN), f"--port={port}", f"--key={API_KEY}", *options]

    defaults: dict[str, Any] = {"start_timeout_s": 60.0, "api_key": API_KEY, "log_tail_lines": 5}
    log = tmp_path / "logs" / "server.log"
    return HttpProcess(
        "server 7",
        command,
        serves,
        environment=os.environ,
        log_path=log,
        host=HOST,
        **{**defaults, **settings},
    )


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HttpProcess]:
    server = make_server(tmp_path)
    yield server
    server.stop()


def started(server: HttpProcess) -> HttpProcess:
    server.start()
    server.wait_ready()
    return server


class TestPorts:
    def test_the_preferred_port_if_it_is_free(self) -> None:
        port = free_port(HOST)
        assert free_port(HOST, port) == port

    def test_another_if_it_is_taken(self) -> None:
        with socket.socket() as taken:
            taken.bind((HOST, 0))
            taken.listen()
            port = taken.getsockname()[1]
            assert not is_free(HOST, port)
            assert free_port(HOST, port) != port

    def test_none_is_free(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(process, "is_free", lambda host, port: False)
        with pytest.raises(EngineError, match=r"no free port on 127\.0\.0\.1"):
            free_port(HOST)

    def test_below_the_ports_of_outgoing_connections(self) -> None:
        """Linux' range begins at 32768; a connection made while the server loads must not take its port."""
        assert all(1024 <= free_port(HOST) < 32768 for _ in range(20))


class TestFetch:
    def test_an_error_status_is_a_reply(self, server: HttpProcess) -> None:
        url = started(server).endpoint.url
        reply = fetch(Endpoint(url, api_key="wrong"), "/server_info", 10.0)
        assert isinstance(reply, Reply) and reply.status == 401
        assert reply.json() == {"error": "Unauthorized"}

    def test_a_closed_port_is_refused(self) -> None:
        assert isinstance(
            fetch(Endpoint(f"http://{HOST}:{free_port(HOST)}"), "/", 5.0), ConnectionRefusedError
        )

    def test_silence_is_a_time_out(self) -> None:
        with socket.socket() as mute:
            mute.bind((HOST, 0))
            mute.listen()
            reply = fetch(Endpoint(f"http://{HOST}:{mute.getsockname()[1]}"), "/", 0.2)
        assert isinstance(reply, TimeoutError)

    def test_not_http_is_an_error_not_an_exception(self) -> None:
        with socket.create_server((HOST, 0)) as other:

            def answer() -> None:
                connection, _ = other.accept()
                connection.sendall(b"SSH-2.0-OpenSSH\r\n")
                connection.close()

            thread = threading.Thread(target=answer)
            thread.start()
            reply = fetch(Endpoint(f"http://{HOST}:{other.getsockname()[1]}"), "/", 5.0)
            thread.join()
        assert isinstance(reply, OSError)

    def test_proxies_of_the_environment_are_not_asked(
        self, server: HttpProcess, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("http_proxy", f"http://{HOST}:{free_port(HOST)}")
        monkeypatch.delenv("no_proxy", raising=False)
        assert isinstance(fetch(started(server).endpoint, "/model_info", 10.0), Reply)

    def test_a_body_that_is_not_json(self) -> None:
        assert Reply(200, b"<html>").json() is None


class TestStart:
    def test_a_server_that_serves(self, server: HttpProcess) -> None:
        assert not server.is_alive() and server.pid is None
        with pytest.raises(EngineError, match="server 7 has not been started"):
            server.endpoint  # noqa: B018
        started(server)
        assert server.is_alive()
        reply = fetch(server.endpoint, "/server_info", 10.0)
        assert isinstance(reply, Reply) and reply.json()["pid"] == server.pid
        assert server.endpoint.api_key == API_KEY and API_KEY not in repr(server.endpoint)

    def test_twice(self, server: HttpProcess) -> None:
        started(server)
        with pytest.raises(EngineError, match="is running already"):
            server.start()

    def test_again_on_the_same_port(self, server: HttpProcess) -> None:
        first = started(server).endpoint
        server.stop()
        assert started(server).endpoint == first
        assert server.starts == 2
        log = server.log_path.read_text()
        assert "start 1 on port" in log and "start 2 on port" in log

    def test_never_started(self, server: HttpProcess) -> None:
        with pytest.raises(EngineError, match="has not been started"):
            server.is_ready()

    def test_the_log_is_private(self, server: HttpProcess) -> None:
        """SGLang logs all of its options, the API key among them."""
        started(server)
        assert stat.S_IMODE(server.log_path.stat().st_mode) == 0o600

    def test_one_that_ends_shows_its_log_and_code(self, tmp_path: Path) -> None:
        server = make_server(tmp_path, "--lines=50", "--fail=3")
        server.start()
        with pytest.raises(EngineError) as caught:
            server.wait_ready()
        message = str(caught.value)
        assert message.startswith(f"server 7 at {server.endpoint.url} ended with exit code 3 while starting")
        assert str(server.log_path) in message
        assert "line 49" in message and "line 45" in message and "line 44" not in message
        assert API_KEY not in message and "api_key='***'" in message
        assert not server.is_alive()

    def test_the_tail_is_of_this_start_only(self, tmp_path: Path) -> None:
        server = make_server(tmp_path, "--fail=3", log_tail_lines=100)
        for start in (1, 2):
            server.start()
            with pytest.raises(EngineError) as caught:
                server.wait_ready()
            assert str(caught.value).count("====") == 1
            assert f"start {start} on port" in str(caught.value)

    def test_one_that_is_never_ready_is_stopped(self, tmp_path: Path) -> None:
        server = make_server(tmp_path, "--mute", "--child", start_timeout_s=1.0)
        server.start()
        pid = server.pid
        with pytest.raises(EngineError, match=r"was not ready after 1 s and was stopped"):
            server.wait_ready()
        assert not psutil.pid_exists(pid)
        assert server.pid is None

    def test_a_command_that_does_not_exist(self, tmp_path: Path) -> None:
        server = make_server(tmp_path)
        server._command = lambda port: ["/no/such/program"]
        with pytest.raises(OSError, match="/no/such/program"):
            server.start()

    def test_a_log_that_cannot_be_read(self, server: HttpProcess) -> None:
        started(server)
        server.log_path.unlink()
        assert "cannot be read" in server.log_tail()


class TestTakenPort:
    """The port is free when it is chosen and taken when the server binds it."""

    @pytest.fixture
    def squatted(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
        with socket.socket() as squatter:
            squatter.bind((HOST, 0))
            squatter.listen()
            port = squatter.getsockname()[1]
            choices = iter([port])
            choose = process.free_port
            monkeypatch.setattr(process, "free_port", lambda *given: next(choices, None) or choose(HOST))
            yield port

    def test_another_port_is_chosen(self, server: HttpProcess, squatted: int) -> None:
        server.start()
        assert server.endpoint.url.endswith(f":{squatted}"), "the fault must happen"
        server.wait_ready()
        assert not server.endpoint.url.endswith(f":{squatted}")
        assert server.starts == 2
        assert "Address already in use" in server.log_path.read_text()

    def test_not_for_ever(self, server: HttpProcess, squatted: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(process, "free_port", lambda *given: squatted)
        server.start()
        with pytest.raises(EngineError, match="Address already in use"):
            server.wait_ready()
        assert server.starts == 4

    def test_another_server_there_is_not_taken_for_ours(
        self, server: HttpProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It answers /health with 200, but does not know this run's key."""
        other = make_server(tmp_path / "other", "--key=another")
        try:
            other.start()
            port = int(other.endpoint.url.rpartition(":")[2])
            wait_until(lambda: isinstance(fetch(other.endpoint, "/health", 5.0), Reply), "other server")
            choices = iter([port])
            choose = process.free_port
            monkeypatch.setattr(process, "free_port", lambda *given: next(choices, None) or choose(HOST))
            started(server)
            assert server.endpoint.url != other.endpoint.url
        finally:
            other.stop()


class TestStop:
    def test_by_force(self, server: HttpProcess) -> None:
        pid = started(server).pid
        server.stop()
        assert not psutil.pid_exists(pid)
        assert not server.is_alive() and server.pid is None
        assert isinstance(fetch(server.endpoint, "/health", 5.0), ConnectionRefusedError)

    def test_twice_and_before_any_start(self, server: HttpProcess) -> None:
        server.stop()
        started(server)
        server.stop()
        server.stop()

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
    def test_by_nobody_else(self, server: HttpProcess, number: signal.Signals) -> None:
        """Slurm sends these to every process of a job, whose trainer still needs its servers."""
        pid = started(server).pid
        os.kill(pid, number)
        assert isinstance(fetch(server.endpoint, "/server_info", 10.0), Reply)
        assert server.is_alive()

    def test_one_that_is_suspended(self, server: HttpProcess) -> None:
        pid = started(server).pid
        os.kill(pid, signal.SIGSTOP)
        server.stop()
        assert not psutil.pid_exists(pid)

    @pytest.mark.parametrize("killed_before", [False, True])
    def test_with_children_that_ignore_it(self, tmp_path: Path, killed_before: bool) -> None:
        server = started(make_server(tmp_path, "--child"))
        wait_until(lambda: "child" in server.log_path.read_text(), "child")
        (child,) = psutil.Process(server.pid).children()
        if killed_before:
            # The child is then nobody's: only the process group still tells whose it was.
            os.kill(server.pid, signal.SIGKILL)
            wait_until(lambda: not server.is_alive(), "death")
            assert child.is_running()
        server.stop()
        wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "end of child")

    def test_its_end_is_noticed(self, server: HttpProcess) -> None:
        started(server)
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: not server.is_alive(), "death")

    def test_ctrl_c_of_the_trainer_does_not_reach_it(self, server: HttpProcess) -> None:
        """A terminal sends it to the whole foreground process group."""
        assert os.getpgid(started(server).pid) != os.getpgid(0)


PARENT = """
import time
import psutil
from tests.sglang_servers import start_server

with start_server() as server:
    children = psutil.Process(server.pid).children(recursive=True)
    print(server.pid, *[child.pid for child in children], flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_a_real_server_dies_with_its_parent(sglang_server_process: HttpProcess) -> None:
    """Killed, the trainer can clean nothing up; its servers must not hold memory and ports for ever."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        try:
            assert parent.stdout is not None
            family = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
            assert len(family) >= 3, "a main process, a scheduler and a detokenizer"
        finally:
            parent.kill()
    assert psutil.wait_procs(family, timeout=60)[1] == []
    assert sglang_server_process.is_alive(), "others' servers are left alone"


def test_a_thread_that_ends_does_not_take_its_server_along(
    server: HttpProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's "die with my parent" means the thread that started the process."""
    spawned_by: list[int] = []

    class Recorded(subprocess.Popen):
        def __init__(self, *given: Any, **settings: Any) -> None:
            spawned_by.append(threading.get_ident())
            super().__init__(*given, **settings)

    monkeypatch.setattr(process.subprocess, "Popen", Recorded)
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    server.wait_ready()
    living = {thread.ident for thread in threading.enumerate()}
    assert spawned_by and set(spawned_by) <= living
