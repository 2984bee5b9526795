"""What can happen to a real server, to one and the same: starting one takes half a minute.

Each test may leave it dead; the next one starts it again.
"""

import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from megatron_srpo.rollout.sglang import process
from megatron_srpo.rollout.sglang.engine import EngineLost, SamplerSettings, SGLangEngine
from megatron_srpo.rollout.sglang.process import HttpProcess, Reply, fetch
from megatron_srpo.rollout.sglang.watch import Condition, ServerWatch
from megatron_srpo.rollout.types import SamplingParams
from tests.rollout.models import tokens_of
from tests.rollout.sglang.test_engine import SIZE, real_requests
from tests.rollout.sglang.test_process import HOST
from tests.rollout.sglang.test_watch import scheduler_of
from tests.sglang_servers import start_server
from tests.waiting import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def taken() -> Iterator[tuple[HttpProcess, int]]:
    """The server, and the port that it chose first: another program took it while the server loaded."""
    with socket.socket() as squatter, pytest.MonkeyPatch.context() as patch:
        squatter.bind((HOST, 0))
        squatter.listen()
        port = squatter.getsockname()[1]
        choices = iter([port])
        choose = process.free_port
        patch.setattr(process, "free_port", lambda *given: next(choices, None) or choose(*given))
        with start_server() as server:
            yield server, port


@pytest.fixture
def server(taken: tuple[HttpProcess, int]) -> HttpProcess:
    """The server, ready."""
    server, _ = taken
    if not server.is_alive():
        server.start()
        server.wait_ready()
    return server


def test_a_port_that_is_taken_meanwhile(taken: tuple[HttpProcess, int]) -> None:
    server, port = taken
    assert server.starts == 2, "the fault must happen"
    assert f"on port {port}\n" in server.log_path.read_text()
    assert not server.endpoint.url.endswith(f":{port}")
    assert isinstance(fetch(server.endpoint, "/server_info", 10.0), Reply)


def kill(server: HttpProcess) -> None:
    """Kill the main process and all others of the server at once."""
    assert server.pid is not None
    main = psutil.Process(server.pid)
    family = [main, *main.children(recursive=True)]
    for one in family:
        one.kill()
    psutil.wait_procs(family, timeout=20)


def test_killed_while_sampling_it_loses_only_what_was_in_flight(server: HttpProcess) -> None:
    """Half are done when it dies; a server started anew samples the rest, the same tokens as ever."""
    requests, params = real_requests(prompts=4, samples=6), SamplingParams(1.0, 1.0, 200)
    starts, settings = server.starts, SamplerSettings(max_concurrency=4)
    engine = SGLangEngine([server.endpoint], vocab_size=SIZE, stop_tokens=(), settings=settings)
    undisturbed = tokens_of(engine.generate(requests, params))

    def progress(count: int, total: int) -> None:
        if count == 12:
            kill(server)

    with pytest.raises(EngineLost, match=server.endpoint.url):
        engine.generate(requests, params, progress)
    assert not server.is_alive()
    finished = len(engine._kept)
    assert 12 <= finished < len(requests)
    server.start()
    server.wait_ready()
    assert server.starts == starts + 1
    sampled: list[int] = []
    again = engine.generate(requests, params, lambda count, total: sampled.append(count))
    engine.close()
    assert tokens_of(again) == undisturbed
    assert len(sampled) == len(requests) - finished


def test_busy_frozen_and_dead(server: HttpProcess) -> None:
    """In the order in which a run might meet it; real limits are a hundred times longer."""
    with ServerWatch(server.endpoint, server.is_alive, 3.0) as watch:
        params = {"max_new_tokens": 900, "ignore_eos": True, "n": 16}
        body = {"input_ids": [5, 6, 7], "sampling_params": params}
        with ThreadPoolExecutor(1) as pool:
            began = time.monotonic()
            request = pool.submit(fetch, server.endpoint, "/generate", 300.0, "POST", body)
            wait_until(lambda: request.done() or watch.condition is not Condition.HEALTHY, "end of request")
            assert watch.condition is Condition.HEALTHY
            assert time.monotonic() - began > 3.0, "the request must outlast the limit"
            reply = request.result()
        assert isinstance(reply, Reply) and reply.status == 200

        # The scheduler suspended: the front process still answers /health.
        scheduler = scheduler_of(server)
        scheduler.suspend()
        wait_until(lambda: watch.condition is Condition.FROZEN, "frozen scheduler")
        assert server.is_alive() and scheduler.status() == psutil.STATUS_STOPPED
        assert isinstance(fetch(server.endpoint, "/model_info", 10.0), Reply)
        # What the client reports outweighs the probes, until the next silence.
        watch.note_progress()
        assert watch.condition is Condition.HEALTHY
        scheduler.resume()
        wait_until(lambda: watch.silent_s < 0.5 and watch.condition is Condition.HEALTHY, "recovery")

        # The front process suspended: nothing answers, but the process exists.
        os.kill(server.pid, signal.SIGSTOP)
        wait_until(lambda: watch.condition is Condition.FROZEN, "frozen front process")
        assert server.is_alive()
        os.kill(server.pid, signal.SIGCONT)
        wait_until(lambda: watch.condition is Condition.HEALTHY, "recovery")

        # Killed: seen at once, without waiting for a probe.
        children = psutil.Process(server.pid).children(recursive=True)
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: watch.condition is Condition.DEAD, "death", seconds=10.0)
        # SGLang's children follow by themselves.
        assert psutil.wait_procs(children, timeout=30)[1] == []
