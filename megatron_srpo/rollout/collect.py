"""Sampling as a collective of one data-parallel replica: all its ranks end with the same completions."""

import heapq
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TypeVar

import torch.distributed as dist

from megatron_srpo.errors import EngineError
from megatron_srpo.rollout.engine import EngineLost, Generation, ProgressCallback, RolloutEngine
from megatron_srpo.rollout.types import Completion, Request, SamplingParams

T = TypeVar("T")

#: Pause between two signs of life of a rank that the others wait for.
STILL_AT_IT_S = 10.0


@dataclass(frozen=True)
class _Failure:
    """What kept a rank from its completions, and whether asking again may help (EngineLost)."""

    text: str
    lost: bool


#: What a rank hands to the others.
_Outcome = list[Completion] | _Failure


def collect(
    engine: RolloutEngine | None,
    requests: Sequence[Request],
    sampling: SamplingParams,
    group: dist.ProcessGroup | None = None,
    on_progress: ProgressCallback | None = None,
) -> list[Completion]:
    """Sample ``requests`` with the engines of one replica; every rank returns all completions.

    Collective over ``group``. An engine with parallelism "every_rank" exists on every rank, which samples a
    share (:func:`shares`); of one with "leader" only rank 0 of the group needs to hold it, the others may
    pass None.

    Args:
        engine: this rank's engine; of the same parallelism on all ranks.
        requests: the same on all ranks.
        sampling: the same on all ranks.
        group: ranks of the replica, a gloo group (objects travel through it, which NCCL would first copy to
            a device); None for a single process.
        on_progress: called on ranks that sample, with counts extrapolated to all requests.

    Raises:
        EngineError: sampling failed on some rank. Raised on all ranks alike, naming the rank, so that none
            waits for an answer that never comes.
        EngineLost: the same, where the engine was lost and asking again may help.
    """
    if group is None or dist.get_world_size(group) == 1:
        return _own(engine).generate(requests, sampling, on_progress)
    if engine is None or engine.parallelism == "leader":
        answer = partial(_generate, engine, requests, sampling, on_progress)
        return _from_leader(answer, len(requests), group)
    return _from_every_rank(engine, requests, sampling, group, on_progress)


def collect_started(
    generation: Generation | None, requests: int, group: dist.ProcessGroup | None = None
) -> list[Completion]:
    """Wait for what the leader's engine samples in the background; every rank returns all completions.

    Collective over ``group``; the arguments are those of :func:`collect`, and so are the errors.

    Args:
        generation: on rank 0 of the group; None on the others.
        requests: how many there are.
    """

    def answer() -> list[Completion]:
        if generation is None:
            raise EngineError("rank 0 of the replica has started no generation")
        return generation.result()

    if group is None or dist.get_world_size(group) == 1:
        return answer()
    return _from_leader(answer, requests, group)


def _from_leader(
    answer: Callable[[], list[Completion]], count: int, group: dist.ProcessGroup
) -> list[Completion]:
    action = partial(_attempt, answer) if dist.get_rank(group) == 0 else None
    return _merge([from_first_patiently(action, group)], [list(range(count))], count)


def from_first_patiently(action: Callable[[], T] | None, group: dist.ProcessGroup | None = None) -> T:
    """Give every rank what ``action`` returns on rank 0 of the group, however long it takes.

    Sampling a batch, or starting a server, may take longer than the time after which a collective gives its
    peers up. So rank 0 works in a thread and says every few seconds that it is still at it.

    Args:
        action: on rank 0; None on the others. It must not raise, and must not communicate.
    """
    if dist.get_world_size(group) == 1:
        assert action is not None
        return action()
    box: list[tuple[T] | None] = [None]
    if action is None:
        while box[0] is None:
            dist.broadcast_object_list(box, group=group, group_src=0)
        return box[0][0]
    with ThreadPoolExecutor(1, "patiently") as pool:
        future = pool.submit(action)
        while box[0] is None:
            with suppress(FutureTimeout):
                box[0] = (future.result(STILL_AT_IT_S),)
            said = list(box)  # the broadcast writes into its list
            dist.broadcast_object_list(said, group=group, group_src=0)
    return box[0][0]


def _from_every_rank(
    engine: RolloutEngine,
    requests: Sequence[Request],
    sampling: SamplingParams,
    group: dist.ProcessGroup,
    on_progress: ProgressCallback | None,
) -> list[Completion]:
    places = shares(requests, dist.get_world_size(group), sampling.max_new_tokens)
    mine = [requests[place] for place in places[dist.get_rank(group)]]
    progress = _extrapolate(on_progress, len(requests))
    outcome = _attempt(partial(_generate, engine, mine, sampling, progress))
    outcomes: list[_Outcome | None] = [None] * dist.get_world_size(group)
    dist.all_gather_object(outcomes, outcome, group=group)
    return _merge(outcomes, places, len(requests))


def shares(requests: Sequence[Request], ranks: int, max_new_tokens: int) -> list[list[int]]:
    """Deal the requests' places out to ranks: the samples of one prompt together, the work balanced.

    Runs of equal prompts share one prefill, so they stay whole unless longer than a fair share. Longest run
    first, each to the rank with the least work so far (a response may cost ``max_new_tokens``, a prompt its
    length, once). Every rank computes the same deal.
    """
    by_prompt = sorted(range(len(requests)), key=lambda place: requests[place].prompt_tokens)
    most = max(1, math.ceil(len(requests) / ranks))
    runs: list[tuple[int, list[int]]] = []
    for prompt, places in groupby(by_prompt, key=lambda place: requests[place].prompt_tokens):
        members = list(places)
        for start in range(0, len(members), most):
            run = members[start : start + most]
            runs.append((len(run) * max_new_tokens + len(prompt), run))
    work = [(0, rank) for rank in range(ranks)]
    dealt: list[list[int]] = [[] for _ in range(ranks)]
    for cost, run in sorted(runs, key=lambda item: (-item[0], item[1])):
        load, rank = heapq.heappop(work)
        dealt[rank].extend(run)
        heapq.heappush(work, (load + cost, rank))
    return dealt


def _generate(
    engine: RolloutEngine | None,
    requests: Sequence[Request],
    sampling: SamplingParams,
    on_progress: ProgressCallback | None,
) -> list[Completion]:
    return _own(engine).generate(requests, sampling, on_progress)


def _attempt(answer: Callable[[], list[Completion]]) -> _Outcome:
    """Sample, or return what went wrong."""
    try:
        return answer()
    except Exception as error:  # boundary: whatever failed here, the other ranks wait for this rank's answer
        text = str(error) if isinstance(error, EngineError) else f"{type(error).__name__}: {error}"
        return _Failure(text, isinstance(error, EngineLost))


def _own(engine: RolloutEngine | None) -> RolloutEngine:
    if engine is None:
        raise EngineError("this rank has to sample but holds no engine; make one on rank 0 of every replica")
    return engine


def _merge(outcomes: Sequence[_Outcome | None], places: list[list[int]], count: int) -> list[Completion]:
    """Put the ranks' completions into request order, or raise what went wrong."""
    failures: list[str] = []
    lost = True
    merged: dict[int, Completion] = {}
    for rank, (part, outcome) in enumerate(zip(places, outcomes, strict=True)):
        if isinstance(outcome, _Failure):
            failures.append(f"rank {rank}: {outcome.text}")
            lost = lost and outcome.lost
        else:
            merged.update(zip(part, outcome or (), strict=True))
    if failures:
        kind = EngineLost if lost else EngineError
        raise kind(f"sampling failed on {len(failures)} of {len(places)} ranks: {'; '.join(failures)}")
    return [merged[place] for place in range(count)]


def _extrapolate(on_progress: ProgressCallback | None, total: int) -> ProgressCallback | None:
    """Turn a rank's counts into counts of all requests, as if the other ranks were as far."""
    if on_progress is None:
        return None
    callback = on_progress
    return lambda done, share: callback(done * total // share, total)
