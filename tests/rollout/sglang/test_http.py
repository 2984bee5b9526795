"""The HTTP client against a server that misbehaves on command."""

import asyncio
import itertools
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_srpo.errors import EngineError
from megatron_srpo.rollout.sglang.endpoint import Endpoint
from megatron_srpo.rollout.sglang.http import (
    SHOWN,
    EventLoopThread,
    RequestRefused,
    Retries,
    ServerFailure,
)
from tests.rollout.sglang.fault_server import FaultServer

FAST = Retries(attempts=3, first_delay_s=0.001)
BODY = {
    "rid": "r-",
    "input_ids": [1, 2],
    "sampling_params": {"max_new_tokens": 4, "sampling_seed": 1, "stop_token_ids": []},
}


@pytest.fixture(scope="module")
def loop() -> Iterator[EventLoopThread]:
    thread = EventLoopThread()
    yield thread
    thread.close()


def generate(loop: EventLoopThread, endpoint: Endpoint, timeout_s: float = 10.0) -> dict[str, Any]:
    return loop.submit(
        loop.http.request_json("POST", endpoint, "/generate", BODY, timeout_s=timeout_s)
    ).result()


def test_an_answer_comes_back_parsed(loop: EventLoopThread) -> None:
    with FaultServer() as server:
        assert generate(loop, server.endpoint)["meta_info"]["id"] == "r-"
        assert server.bodies == [BODY]


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ("500", "status 500: .*fault 500"),
        ("503", "status 503"),
        ("429", "status 429"),
        ("302", "status 302"),
        ("truncated", "status 200, but not JSON"),
        ("not json", "status 200, but not JSON.*<html>gateway"),
        ("reset", "ClientPayloadError|ServerDisconnected|ConnectionReset"),
    ],
)
def test_a_server_that_fails(loop: EventLoopThread, fault: str, named: str) -> None:
    with FaultServer([fault]) as server:
        with pytest.raises(ServerFailure, match=rf"POST {server.endpoint.url}/generate: .*({named})"):
            generate(loop, server.endpoint)
        assert server.counts[fault] == 1
        assert len(server.bodies) == 1, "a POST must not be repeated unasked"
        assert generate(loop, server.endpoint)["output_ids"], "the pool must survive"


def test_a_server_that_hangs(loop: EventLoopThread) -> None:
    with FaultServer(["hang"]) as server:
        with pytest.raises(ServerFailure, match=r"/generate: no answer within 0.3 s"):
            generate(loop, server.endpoint, timeout_s=0.3)
        assert server.counts["hang"] == 1


def test_nobody_listens(loop: EventLoopThread) -> None:
    with FaultServer() as server:
        endpoint = server.endpoint
    with pytest.raises(ServerFailure, match=rf"{endpoint.url}/generate: ClientConnectorError"):
        generate(loop, endpoint)


@pytest.mark.parametrize("status", [400, 404, 413, 422])
def test_a_refused_request_is_told_apart(loop: EventLoopThread, status: int) -> None:
    with FaultServer([str(status)]) as server:
        with pytest.raises(RequestRefused, match=f"status {status}: .*fault {status}") as caught:
            generate(loop, server.endpoint)
        assert caught.value.status == status
        assert server.counts[str(status)] == 1


def test_a_wrong_key_names_the_setting_and_not_the_key(loop: EventLoopThread) -> None:
    with FaultServer(api_key="right") as server:
        for key in ("wrong-secret", None):
            with pytest.raises(RequestRefused, match=r"status 401(?s:.*)sglang.api_key_file") as caught:
                generate(loop, Endpoint(server.endpoint.url, 1, key))
            assert "wrong-secret" not in str(caught.value)
        assert server.counts["wrong key"] == 2
        assert generate(loop, server.endpoint)["output_ids"]


def test_an_error_shows_only_the_beginning_of_a_reply(loop: EventLoopThread) -> None:
    with (
        FaultServer([lambda reply: reply.update(success=False, message="x" * 5000)]) as server,
        pytest.raises(ServerFailure, match="success is false") as caught,
    ):
        generate(loop, server.endpoint)
    assert SHOWN < len(str(caught.value)) < SHOWN + 200


def test_a_reply_that_is_no_object(loop: EventLoopThread) -> None:
    async def list_reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n[]")
        await writer.drain()
        writer.close()

    async def scenario() -> None:
        server = await asyncio.start_server(list_reply, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server:
            await loop.http.request_json("GET", Endpoint(url), "/x", timeout_s=5.0)

    with pytest.raises(ServerFailure, match="not a JSON object"):
        loop.submit(scenario()).result()


@pytest.mark.parametrize(("faults", "calls"), [([], 1), (["500"], 2), (["503", "500"], 3)])
def test_reading_is_repeated(loop: EventLoopThread, faults: list[str], calls: int) -> None:
    with FaultServer(faults) as server:
        reading = loop.http.get_json(server.endpoint, "/model_info", timeout_s=5.0, retries=FAST)
        assert loop.submit(reading).result()["weight_version"] == "default"
        assert server.counts["/model_info"] == calls


def test_reading_is_repeated_a_bounded_number_of_times(loop: EventLoopThread) -> None:
    with FaultServer(always="500") as server:
        reading = loop.http.get_json(server.endpoint, "/model_info", timeout_s=5.0, retries=FAST)
        with pytest.raises(ServerFailure, match="status 500"):
            loop.submit(reading).result()
        assert server.counts["/model_info"] == 3


def test_a_refusal_is_not_repeated(loop: EventLoopThread) -> None:
    with FaultServer(always="404") as server:
        reading = loop.http.get_json(server.endpoint, "/model_info", timeout_s=5.0, retries=FAST)
        with pytest.raises(RequestRefused):
            loop.submit(reading).result()
        assert server.counts["/model_info"] == 1


@given(
    st.integers(0, 2000),
    st.floats(0.001, 10.0),
    st.floats(0.001, 100.0),
)
def test_pauses_grow_within_bounds(failures: int, first: float, longest: float) -> None:
    delay = Retries(4, first, longest).delay(failures)
    bound = min(longest, first * 2 ** min(failures - 1, 40)) if failures else 0.0
    assert bound / 2 <= delay <= bound


def test_pauses_differ() -> None:
    assert len({Retries().delay(3) for _ in range(20)}) > 10


def test_the_loop_is_a_daemon_that_ends_with_close() -> None:
    thread = EventLoopThread()
    name = thread.submit(asyncio.sleep(0, "value")).result()
    assert name == "value"
    workers = [worker for worker in threading.enumerate() if worker.name == "sglang-client"]
    assert workers
    assert all(worker.daemon for worker in workers)
    running = thread.submit(asyncio.sleep(3600))
    thread.close()
    thread.close()
    assert running.cancelled()
    assert len([w for w in threading.enumerate() if w.name == "sglang-client"]) == len(workers) - 1
    with pytest.raises(EngineError, match="closed"):
        thread.submit(asyncio.sleep(0))


def test_calls_reach_the_loop_in_order(loop: EventLoopThread) -> None:
    seen: list[int] = []
    for number in range(5):
        loop.call(seen.append, number)
    loop.submit(asyncio.sleep(0)).result()
    assert seen == list(itertools.islice(itertools.count(), 5))
