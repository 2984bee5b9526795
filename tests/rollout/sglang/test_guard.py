"""Which servers the guard takes out of rotation and puts back."""

import time

from megatron_srpo.errors import EngineError
from megatron_srpo.rollout.sglang.endpoint import Endpoint, on_this_host
from megatron_srpo.rollout.sglang.engine import SGLangEngine
from megatron_srpo.rollout.sglang.guard import Guard
from megatron_srpo.rollout.sglang.watch import Condition

A, B = "http://127.0.0.1:1", "http://127.0.0.1:2"
HEALTHY, DEAD, FROZEN = Condition.HEALTHY, Condition.DEAD, Condition.FROZEN


class Noting(SGLangEngine):
    """An engine that notes what is asked of it, and asks nobody anything."""

    def __init__(self) -> None:
        super().__init__([Endpoint(A), Endpoint(B)], vocab_size=10, stop_tokens=())
        self.asked: list[str] = []

    def exclude(self, url: str, gone: bool = False) -> None:
        self.asked.append(f"out {url[-1]}{', gone' if gone else ''}")

    def include(self, url: str) -> None:
        self.asked.append(f"in {url[-1]}")


def asked(*states: dict[str, Condition]) -> list[str]:
    """Let the guard see one state after another."""
    engine, known = Noting(), [{}]
    guard = Guard(engine, lambda: known[0])
    guard.stop()
    for state in states:
        known[0] = state
        guard.check()
    engine.close()
    return engine.asked


def test_only_changes_count() -> None:
    states = [
        {A: HEALTHY, B: HEALTHY},
        {A: FROZEN, B: HEALTHY},
        {A: DEAD, B: HEALTHY},
        {A: HEALTHY, B: HEALTHY},
    ]
    assert asked(*states) == ["out 1", "out 1, gone", "in 1"]


def test_both_may_be_lost() -> None:
    assert asked({A: DEAD, B: FROZEN}) == ["out 1, gone", "out 2"]


def test_a_server_that_the_engine_no_longer_has_is_left_alone() -> None:
    """A restart on another port: the watch may still know the old url."""
    assert asked({"http://127.0.0.1:3": DEAD}) == []


def test_a_router_is_told_first_and_its_refusal_is_no_hindrance() -> None:
    engine, told = Noting(), []

    def refuse(url: str) -> None:
        told.append((url, list(engine.asked)))
        raise EngineError("the router does not answer")

    guard = Guard(engine, lambda: {A: DEAD, B: HEALTHY}, refuse)
    guard.stop()
    guard.check()
    guard.check()
    engine.close()
    assert told == [(A, [])] and engine.asked == ["out 1, gone"]


def test_a_server_that_was_given_up_meanwhile_does_not_end_it() -> None:
    engine = Noting()
    known = [{A: DEAD}, {B: DEAD}]

    def given_up() -> dict[str, Condition]:
        return known.pop(0)

    def refuse(url: str, gone: bool = False) -> None:
        raise EngineError(f"the engine has no server {url!r}")

    guard = Guard(engine, given_up)
    guard.stop()
    exclude, engine.exclude = engine.exclude, refuse  # type: ignore[method-assign]
    guard.check()
    engine.exclude = exclude  # type: ignore[method-assign]
    guard.check()
    engine.close()
    assert engine.asked == ["out 2, gone"]


def test_it_works_by_itself_until_it_is_stopped() -> None:
    engine = Noting()
    guard = Guard(engine, lambda: {A: DEAD})
    deadline = time.monotonic() + 30
    while not engine.asked and time.monotonic() < deadline:
        time.sleep(0.05)
    guard.stop()
    engine.close()
    assert engine.asked == ["out 1, gone"]


def test_loopback_and_this_machines_name_are_this_host() -> None:
    assert on_this_host("http://127.0.0.1:30000") and on_this_host("http://localhost:1")
    # Addresses that are reserved for documentation (RFC 5737) and names that lead nowhere (RFC 6761).
    assert not on_this_host("http://192.0.2.7:30000")
    assert not on_this_host("http://nowhere.invalid:30000")
