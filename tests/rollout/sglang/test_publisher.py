"""Publishing on several ranks: what one rank meets, all ranks hear."""

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import pytest

from megatron_srpo.errors import EngineError
from megatron_srpo.rollout.sglang.endpoint import Endpoint
from megatron_srpo.rollout.sglang.fleet import Revival
from megatron_srpo.rollout.sglang.watch import Condition
from megatron_srpo.weights.sync import SyncReport
from tests.ranks import run_ranks


def answered(error: str | None = None, value: Any = None) -> "Future[Any]":
    future: Future[Any] = Future()
    future.set_exception(EngineError(error)) if error else future.set_result(value)
    return future


class Server:
    """Notes what it is asked; refuses the steps in ``refuses``."""

    def __init__(self, name: str, notes: list[str], refuses: tuple[str, ...]) -> None:
        self.name, self.notes, self.refuses = name, notes, refuses
        self.endpoint = Endpoint(name)

    def _answer(self, step: str) -> "Future[Any]":
        self.notes.append(step)
        return answered(f"{self.name} refuses" if step in self.refuses else None, {})

    def release_memory(self, tags: list[str]) -> "Future[Any]":
        return self._answer(f"release {'+'.join(tags)}")

    def resume_memory(self, tags: list[str]) -> "Future[Any]":
        return self._answer(f"resume {'+'.join(tags)}")

    def end_update(self) -> "Future[Any]":
        return self._answer("end")

    def info(self) -> "Future[Any]":
        return self._answer("info")


class Engine:
    """Holds the servers; on the leader only."""

    def __init__(self, servers: list[Server]) -> None:
        self.servers = tuple(servers)
        self.version = -1

    def published(self, version: int) -> None:
        self.version = version

    def set_servers(self, endpoints: Sequence[Endpoint]) -> None:
        """Keep those of the servers that are named; a stand-in knows no others."""
        self.servers = tuple(server for server in self.servers if server.endpoint in endpoints)

    def close(self) -> None:
        pass


class Servers:
    """Stands for the fleet: the servers in ``lost`` are lost once."""

    def __init__(self, lost: tuple[int, ...], notes: list[str]) -> None:
        self._lost, self.notes = lost, notes
        self.endpoints = (Endpoint("http://127.0.0.1:9"),)

    def known(self) -> dict[str, Condition]:
        return {endpoint.url: Condition.HEALTHY for endpoint in self.endpoints}

    def revive(self, silent: set[str], admit: bool) -> Revival:
        lost, self._lost = self._lost, ()
        lost += tuple(i for i, endpoint in enumerate(self.endpoints) if endpoint.url in silent)
        self.notes += [f"restart {index}" for index in lost]
        return Revival(self.endpoints, bool(lost))

    def settle(self) -> None:
        self.notes.append("settle")

    def take_out(self, url: str) -> None:
        pass

    def report(self, text: str) -> None:
        self.notes.append("told")

    def close(self) -> None:
        pass


class Sync:
    """Fails as often as it is told to."""

    timeout_s = 5.0

    def __init__(self, failures: int, notes: list[str]) -> None:
        self.failures, self.notes = failures, notes

    def reset(self) -> None:
        self.notes.append("reset")

    def push(self, servers: Any, version: int, verify: bool, serving: bool) -> SyncReport:
        self.notes.append(f"push {version} to {len(servers)}{' verified' if verify else ''}")
        if self.failures:
            self.failures -= 1
            raise EngineError("a bucket was lost")
        return SyncReport(version, 10, {"send": 0.5})


def publish(
    rank: int, world: int, failures: int, refuses: tuple[str, ...], rest: bool, lost: tuple[int, ...] = ()
) -> tuple[str, list[str]]:
    """Rest if asked to, then publish version 3; return the metrics' or the error's text, and the notes."""
    return attempt(rank, failures, refuses, lost, lambda publisher: publish_after(publisher, rest))


def publish_after(publisher: Any, rest: bool) -> dict[str, float]:
    if rest:
        publisher.rest()
        publisher.rest()
    return publisher.publish(3)


def restore(rank: int, world: int, refuses: tuple[str, ...]) -> tuple[str, list[str]]:
    """Publish version 3 and restore it."""

    def both(publisher: Any) -> dict[str, float]:
        metrics = publisher.publish(3)
        publisher.restore()
        return metrics

    return attempt(rank, 0, refuses, (), both)


def attempt(
    rank: int,
    failures: int,
    refuses: tuple[str, ...],
    lost: tuple[int, ...],
    action: Callable[[Any], dict[str, float]],
) -> tuple[str, list[str]]:
    from megatron_srpo.model.parallel import initialize_parallel
    from megatron_srpo.rollout.sglang.publisher import SGLangPublisher

    groups = initialize_parallel(2, 1)
    notes: list[str] = []
    engine = Engine([Server("http://127.0.0.1:9", notes, refuses)]) if rank == 0 else None
    sync: Any = Sync(failures, notes)
    fleet: Any = Servers(lost, notes) if rank == 0 else None
    publisher = SGLangPublisher(
        fleet,
        engine,  # type: ignore[arg-type]
        sync,
        groups,
        [Endpoint("http://127.0.0.1:9")],
        attempts=2,
        colocated=True,
    )
    try:
        metrics = action(publisher)
    except EngineError as error:
        return str(error), notes
    finally:
        publisher.close()
    assert engine is None or engine.version == 3
    return f"{metrics['sync/bytes']:.0f} bytes", notes


def test_a_failed_push_is_tried_again_and_verified() -> None:
    (text, notes), (other, _) = run_ranks(2, publish, 1, (), False)
    assert text == other == "10 bytes"
    assert notes == ["push 3 to 1", "told", "info", "end", "push 3 to 1 verified", "settle"]


def test_after_the_last_attempt_all_ranks_fail_alike() -> None:
    (text, notes), (other, _) = run_ranks(2, publish, 2, (), False)
    assert text == other == "a bucket was lost (attempt 2 of 2)"
    assert [note for note in notes if note.startswith("push")] == ["push 3 to 1", "push 3 to 1 verified"]


def test_a_lost_server_is_restarted_given_the_weights_and_put_back() -> None:
    (text, notes), (other, _) = run_ranks(2, publish, 0, (), False, (0,))
    assert text == other == "10 bytes"
    assert notes == ["restart 0", "reset", "push 3 to 1 verified", "settle"]


def test_restoring_verifies_what_a_restarted_server_was_given() -> None:
    """Rank 0 finds the server silent."""
    (text, notes), (other, _) = run_ranks(2, restore, ("info",))
    assert text == other == "10 bytes"
    published, restored = ["push 3 to 1", "settle"], ["reset", "push 3 to 1 verified", "settle"]
    assert notes == [*published, "info", "restart 0", *restored]


def test_memory_is_released_once_and_taken_again_around_the_push() -> None:
    (text, notes), (other, _) = run_ranks(2, publish, 0, (), True)
    assert text == other == "10 bytes"
    assert notes == ["release kv_cache+weights", "resume weights", "push 3 to 1", "resume kv_cache", "settle"]


@pytest.mark.parametrize("step", ["release kv_cache+weights", "resume weights", "resume kv_cache"])
def test_a_server_that_refuses_stops_all_ranks(step: str) -> None:
    """Rank 1 drives no server; it must not go on alone and wait for rank 0 in the next collective."""
    (text, _), (other, _) = run_ranks(2, publish, 0, (step,), True)
    assert text == other
    assert text.endswith("memory: http://127.0.0.1:9 refuses") or text.endswith(
        "again: http://127.0.0.1:9 refuses"
    )


#: On machines of no rank.
A, B = Endpoint("http://a.invalid:1"), Endpoint("http://b.invalid:1")


class Comers(Servers):
    """Stands for a registered fleet: of its two servers, those named in ``losses`` are given up, one each
    time that it is asked; and who comes back at the end."""

    def __init__(self, notes: list[str], losses: list[set[str]]) -> None:
        super().__init__((), notes)
        self.endpoints = (A, B)
        self.losses = losses

    def revive(self, silent: set[str], admit: bool) -> Revival:
        gone = self.losses.pop(0) if self.losses else set()
        before = self.endpoints
        self.endpoints = tuple(endpoint for endpoint in before if endpoint.url not in gone)
        self.notes.append(f"revive{' and admit' if admit else ''}: {len(self.endpoints)}")
        return Revival(self.endpoints, self.endpoints != before, bool(gone))


def publish_on_two_copies(
    rank: int, world: int, failures: int, losses: list[set[str]]
) -> tuple[str, list[str], list[bool]]:
    """Publish version 3 from two copies of the model to two servers; ranks note whether they serve any."""
    from megatron_srpo.model.parallel import initialize_parallel
    from megatron_srpo.rollout.sglang.publisher import SGLangPublisher
    from megatron_srpo.rollout.sglang.registry import Registry

    groups = initialize_parallel(1, 1)
    notes: list[str] = []
    serving: list[bool] = []
    engine: Any = Engine([Server(A.url, notes, ()), Server(B.url, notes, ())])
    sync: Any = Noting(failures, notes, serving)
    fleet: Any = Comers(notes, losses) if rank == 0 else None
    publisher = SGLangPublisher(
        fleet, engine, sync, groups, [A, B], attempts=2, registry=Registry(tempfile.mkdtemp())
    )
    try:
        publisher.publish(3)
    except EngineError as error:
        return str(error), notes, serving
    finally:
        publisher.close()
    return "published", notes, serving


class Noting(Sync):
    """Also notes who serves; all ranks fail alike, as the real one does."""

    def __init__(self, failures: int, notes: list[str], serving: list[bool]) -> None:
        super().__init__(failures, notes)
        self.serving = serving

    def push(self, servers: Any, version: int, verify: bool, serving: bool) -> SyncReport:
        self.serving.append(serving)
        return super().push(servers, version, verify, serving)


def pushes(notes: list[str]) -> list[str]:
    return [note for note in notes if note.startswith("push")]


def test_registered_servers_are_dealt_out_anew_when_one_is_lost() -> None:
    """It dies in the first push; the copy that looked after it has nothing to do in the second."""
    (text, notes, serving), (other, others, idle) = run_ranks(2, publish_on_two_copies, 1, [set(), {B.url}])
    assert text == other == "published"
    assert [note for note in notes if note.startswith("revive")] == ["revive and admit: 2", "revive: 1"]
    assert pushes(notes) == ["push 3 to 1", "push 3 to 1 verified"] and serving == [True, True]
    assert pushes(others) == ["push 3 to 1", "push 3 to 0 verified"] and idle == [True, False]
    assert "reset" in notes and "reset" in others, "groups with the lost server are forgotten everywhere"


def test_the_other_copy_takes_over() -> None:
    """Servers are counted among those that are left."""
    (text, notes, serving), (_, others, idle) = run_ranks(2, publish_on_two_copies, 0, [{A.url}])
    assert text == "published"
    assert pushes(notes) == ["push 3 to 1 verified"] and serving == [True]
    assert pushes(others) == ["push 3 to 0 verified"] and idle == [False]


def test_failures_that_go_with_lost_servers_are_no_attempts() -> None:
    losses = [set(), {A.url}, set(), set()]
    (text, notes, _), (other, _, _) = run_ranks(2, publish_on_two_copies, 2, losses)
    assert text == other == "published", "two attempts: one failure is forgiven"
    assert len(pushes(notes)) == 3
    (text, notes, _), (other, _, _) = run_ranks(2, publish_on_two_copies, 2, [set(), set()])
    assert text == other == "a bucket was lost (attempt 2 of 2)"
    assert len(pushes(notes)) == 2
