"""Tickets, and what happens when servers are lost while replicas wait for their answers."""

import threading
from typing import Any

import pytest
import torch.distributed as dist

from megatron_srpo.errors import EngineError
from megatron_srpo.rollout.engine import EngineLost
from megatron_srpo.rollout.types import Completion, Request, SamplingParams, VersionSpan
from megatron_srpo.session.stop import StopRequested
from tests.ranks import run_ranks

PARAMS = SamplingParams(1.0, 1.0, 4)


class Beside:
    """An engine that loses its server for the first ``losses`` calls, keeping one more answer each time."""

    def __init__(self, losses: int) -> None:
        self.losses, self.calls = losses, 0

    def submit(self, requests: Any, sampling: SamplingParams, on_progress: Any = None) -> "Beside":
        self.requests = requests
        self.calls += 1
        return self

    def result(self) -> list[Completion]:
        if self.calls <= self.losses:
            raise EngineLost("the server died")
        spans = (VersionSpan(0, 1),)
        return [Completion(request.id, (request.seed,), (0.0,), "stop", spans) for request in self.requests]


class Restoring:
    """A publisher that counts how often it was asked to restore."""

    def __init__(self) -> None:
        self.restored = 0

    def restore(self) -> None:
        dist.barrier()  # a collective over the job, as the real one is
        self.restored += 1


def sample(rank: int, world: int, losses: list[int]) -> tuple[list[int], int, int]:
    """Two replicas of two ranks; the leader of each loses its server so often."""
    from megatron_srpo.model.parallel import initialize_parallel
    from megatron_srpo.session.sampling import ServerSampling

    groups = initialize_parallel(2, 1)
    engine = Beside(losses[groups.dp_rank]) if groups.is_leader else None
    publisher = Restoring()
    sampling: Any = ServerSampling(engine, publisher, groups)  # type: ignore[arg-type]
    requests = [Request(f"{groups.dp_rank}/{i}", (1,), 10 * groups.dp_rank + i) for i in range(3)]
    first = sampling.start(requests, PARAMS)
    second = sampling.start(requests, PARAMS)
    found = [completion.tokens[0] for completion in sampling.finish(first)]
    assert [completion.tokens[0] for completion in sampling.finish(second)] == found
    return found, publisher.restored, engine.calls if engine else 0


def test_all_replicas_restore_together_until_every_one_has_its_answers() -> None:
    """Replica 1 loses its server three times on the way; replica 0 takes part and keeps its answers."""
    results = run_ranks(4, sample, [0, 4])
    assert [found for found, _, _ in results] == [[0, 1, 2]] * 2 + [[10, 11, 12]] * 2
    assert {restored for _, restored, _ in results} == {3}
    assert [calls for _, _, calls in results] == [2, 0, 5, 0]


class Endless(Beside):
    """An engine whose generations end when they are cancelled."""

    def __init__(self) -> None:
        super().__init__(0)
        self.cancelled = threading.Event()

    def result(self) -> list[Completion]:
        assert self.cancelled.wait(60)
        raise EngineError("sampling was cancelled")

    def cancel(self) -> None:
        self.cancelled.set()


class Asked:
    """A run that was asked to stop, on the ranks that know of it."""

    def __init__(self, here: bool) -> None:
        self.here = here

    def pending(self) -> bool:
        return self.here

    def heed(self) -> None:
        dist.barrier()
        raise StopRequested("SIGTERM")


def leave(rank: int, world: int, engine_type: str) -> tuple[str, int]:
    """The first replica's server is lost, or works without end, and the run is to stop."""
    from megatron_srpo.model.parallel import initialize_parallel
    from megatron_srpo.session.sampling import ServerSampling

    groups = initialize_parallel(2, 1)
    publisher, engine = Restoring(), None
    if groups.is_leader:
        engine = Beside(0) if groups.dp_rank else Endless() if engine_type == "endless" else Beside(9)
    sampling: Any = ServerSampling(engine, publisher, groups)  # type: ignore[arg-type]
    asked: Any = Asked(here=rank == 0 and engine_type == "endless")
    try:
        sampling.finish(sampling.start([Request("0", (1,), 1)], PARAMS), asked)
    except StopRequested as request:
        return str(request), publisher.restored
    return "went on", publisher.restored


@pytest.mark.parametrize("engine", ["lost", "endless"])
def test_a_run_that_shall_stop_waits_for_no_server(engine: str) -> None:
    assert run_ranks(4, leave, engine) == [("stopped on request (SIGTERM)", 0)] * 4


def test_without_a_loss_nothing_is_restored() -> None:
    assert {restored for _, restored, _ in run_ranks(4, sample, [0, 0])} == {0}


class Waiting:
    """A publisher that waits for servers until the run is asked to stop."""

    def __init__(self, asked: list[str]) -> None:
        self.asked = asked

    def restore(self) -> None:
        dist.barrier()
        self.asked.append("SIGUSR1")
        raise EngineError("stop requested while waiting for SGLang servers")


class Later:
    """Is asked to stop while the publisher waits."""

    def __init__(self, asked: list[str]) -> None:
        self._asked = asked

    def pending(self) -> bool:
        return bool(self._asked)

    def heed(self) -> None:
        if self._asked:
            raise StopRequested(self._asked[0])


def wait_in_vain(rank: int, world: int, heeded: bool) -> str:
    from megatron_srpo.model.parallel import initialize_parallel
    from megatron_srpo.session.sampling import ServerSampling

    groups = initialize_parallel(2, 1)
    engine = Beside(1) if groups.is_leader else None
    asked: list[str] = []
    sampling: Any = ServerSampling(engine, Waiting(asked), groups)  # type: ignore[arg-type]
    stop: Any = Later(asked if heeded else [])
    try:
        sampling.finish(sampling.start([Request("0/0", (1,), 0)], PARAMS), stop)
    except (EngineError, StopRequested) as error:
        return str(error)
    return "answered"


def test_a_request_to_stop_ends_the_wait_for_servers_in_good_order() -> None:
    assert run_ranks(2, wait_in_vain, True) == ["stopped on request (SIGUSR1)"] * 2
    assert run_ranks(2, wait_in_vain, False) == ["stop requested while waiting for SGLang servers"] * 2
