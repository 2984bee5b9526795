"""Who is asked next: strikes, exclusion and return."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any

import pytest

from megatron_srpo.rollout.engine import EngineLost
from megatron_srpo.rollout.sglang.endpoint import Endpoint
from megatron_srpo.rollout.sglang.http import Retries
from megatron_srpo.rollout.sglang.rotation import Rotation

ERROR = "it fell over"


def on_a_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    @wraps(test)
    def run() -> None:
        asyncio.run(test())

    return run


def make_rotation(servers: int = 2, attempts: int = 3) -> Rotation:
    endpoints = [Endpoint(f"http://127.0.0.1:{place}") for place in range(servers)]
    return Rotation(endpoints, 4, Retries(attempts, 0.001))


def strike(rotation: Rotation, place: int) -> None:
    rotation.failed(rotation._seats[place], rotation.tick(), ERROR)


@on_a_loop
async def test_home_is_asked_while_it_does_well() -> None:
    rotation = make_rotation()
    first, second = rotation.live
    assert rotation.choose(first) is first
    assert rotation.choose(second) is second
    strike(rotation, 0)
    assert rotation.choose(first) is second
    rotation.succeeded(first)
    assert rotation.choose(first) is first


@on_a_loop
async def test_the_least_busy_takes_over() -> None:
    rotation = make_rotation(servers=3)
    first, second, third = rotation.live
    rotation.exclude(first.endpoint.url)
    second.in_flight = {1, 2}
    assert rotation.choose(first) is third


@on_a_loop
async def test_requests_lost_together_are_one_strike() -> None:
    rotation = make_rotation(servers=1)
    (seat,) = rotation.live
    sent = [rotation.tick() for _ in range(50)]
    for tick in sent:
        rotation.failed(seat, tick, ERROR)
    assert seat.strikes == 1
    strike(rotation, 0)
    assert seat.strikes == 2


@on_a_loop
async def test_too_many_strikes_are_the_end() -> None:
    rotation = make_rotation(servers=2, attempts=3)
    for _ in range(3):
        strike(rotation, 0)
    assert [seat.endpoint.url for seat in rotation.live] == ["http://127.0.0.1:1"]
    for _ in range(3):
        strike(rotation, 1)
    with pytest.raises(EngineLost, match=r"127.0.0.1:0: it fell over; http://127.0.0.1:1: it fell over"):
        rotation.choose(None)
    rotation.forgive()
    assert len(rotation.live) == 2


@on_a_loop
async def test_a_server_at_work_on_older_requests_is_not_given_up() -> None:
    rotation = make_rotation(servers=1, attempts=3)
    (seat,) = rotation.live
    old = rotation.tick()
    seat.in_flight.add(old)
    for _ in range(5):
        strike(rotation, 0)
    assert rotation.choose(seat) is seat
    seat.in_flight = {rotation.tick()}
    with pytest.raises(EngineLost):
        rotation.choose(seat)


@on_a_loop
async def test_exclusion_wakes_who_waits_and_return_forgets() -> None:
    rotation = make_rotation(servers=1)
    (seat,) = rotation.live
    strike(rotation, 0)
    gone = seat.gone
    rotation.exclude(seat.endpoint.url)
    rotation.exclude(seat.endpoint.url)
    assert gone.done()
    assert seat.excluded
    with pytest.raises(EngineLost, match="taken out of rotation"):
        rotation.choose(seat)
    rotation.include(seat.endpoint.url)
    assert not seat.excluded
    assert seat.strikes == 0
    assert rotation.choose(seat) is seat


@pytest.fixture()
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record the pauses that are asked for, and make them short."""
    asked: list[float] = []
    wait = asyncio.wait

    async def recorded(futures: Any, timeout: float) -> Any:
        asked.append(timeout)
        return await wait(futures, timeout=0.001)

    monkeypatch.setattr(asyncio, "wait", recorded)
    return asked


def test_only_who_failed_is_waited_for(pauses: list[float]) -> None:
    async def scenario() -> None:
        rotation = make_rotation()
        strike(rotation, 0)
        for seat in rotation.live:
            await rotation.wait(seat)

    asyncio.run(scenario())
    assert len(pauses) == 1
    assert 0.0005 <= pauses[0] <= 0.001


def test_a_pause_grows_when_the_server_fails_again_meanwhile(pauses: list[float]) -> None:
    async def scenario() -> None:
        rotation = make_rotation(attempts=9)
        (seat, _) = rotation.live
        strike(rotation, 0)
        waiting = asyncio.create_task(rotation.wait(seat))
        await asyncio.sleep(0)
        strike(rotation, 0)
        await waiting

    asyncio.run(scenario())
    assert len(pauses) == 2
    assert 0.001 <= pauses[1] <= 0.002


def test_exclusion_ends_a_pause() -> None:
    async def scenario() -> None:
        rotation = Rotation([Endpoint("http://127.0.0.1:0")], 1, Retries(3, 3600.0, 3600.0))
        (seat,) = rotation.live
        strike(rotation, 0)
        waiting = asyncio.create_task(rotation.wait(seat))
        await asyncio.sleep(0)
        rotation.exclude(seat.endpoint.url)
        await asyncio.wait_for(waiting, 20)

    asyncio.run(scenario())


@on_a_loop
async def test_servers_come_and_go() -> None:
    rotation = make_rotation(servers=2)
    first, second = rotation.live
    strike(rotation, 1)
    third = Endpoint("http://127.0.0.1:7")
    rotation.set_endpoints([Endpoint(second.endpoint.url, incarnation="new"), third])
    assert first.excluded, "what is in flight there is not waited for"
    assert rotation.live[0] is second and second.strikes == 0 and second.endpoint.incarnation == "new"
    assert [seat.endpoint.url for seat in rotation.live] == [second.endpoint.url, third.url]
    assert rotation.choose(first) in rotation.live
    rotation.set_endpoints([third])
    assert rotation.patience < make_rotation(servers=2).patience


@on_a_loop
async def test_one_that_was_out_is_in_again_when_it_is_named() -> None:
    rotation = make_rotation(servers=1)
    (seat,) = rotation.live
    rotation.exclude(seat.endpoint.url)
    rotation.set_endpoints([seat.endpoint])
    assert rotation.live == [seat]


@on_a_loop
async def test_a_bounce_wakes_who_waits_and_leaves_it_in() -> None:
    rotation = make_rotation(servers=1)
    (seat,) = rotation.live
    gone = seat.gone
    rotation.bounce(seat.endpoint.url)
    assert gone.done() and not seat.excluded and rotation.live == [seat]
