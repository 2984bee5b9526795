"""Sampling as a collective of one data-parallel replica: all its ranks end with the same completions."""

import heapq
import math
from collections.abc import Sequence
from itertools import groupby

import torch.distributed as dist

from megatron_srpo.errors import EngineError
from megatron_srpo.rollout.engine import ProgressCallback, RolloutEngine
from megatron_srpo.rollout.types import Completion, Request, SamplingParams

#: What a rank hands to the others: its completions, or the text of the error that kept it from them.
_Outcome = list[Completion] | str


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
    """
    if group is None or dist.get_world_size(group) == 1:
        return _own(engine).generate(requests, sampling, on_progress)
    if engine is None or engine.parallelism == "leader":
        return _from_leader(engine, requests, sampling, group, on_progress)
    return _from_every_rank(engine, requests, sampling, group, on_progress)


def _from_leader(
    engine: RolloutEngine | None,
    requests: Sequence[Request],
    sampling: SamplingParams,
    group: dist.ProcessGroup,
    on_progress: ProgressCallback | None,
) -> list[Completion]:
    holder: list[_Outcome | None] = [None]
    if dist.get_rank(group) == 0:
        holder = [_attempt(engine, requests, sampling, on_progress)]
    dist.broadcast_object_list(holder, group=group, group_src=0)
    return _merge(holder, [list(range(len(requests)))], len(requests))


def _from_every_rank(
    engine: RolloutEngine,
    requests: Sequence[Request],
    sampling: SamplingParams,
    group: dist.ProcessGroup,
    on_progress: ProgressCallback | None,
) -> list[Completion]:
    places = shares(requests, dist.get_world_size(group), sampling.max_new_tokens)
    mine = [requests[place] for place in places[dist.get_rank(group)]]
    outcome = _attempt(engine, mine, sampling, _extrapolate(on_progress, len(requests)))
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


def _attempt(
    engine: RolloutEngine | None,
    requests: Sequence[Request],
    sampling: SamplingParams,
    on_progress: ProgressCallback | None,
) -> _Outcome:
    """Sample, or return the error's text."""
    try:
        return _own(engine).generate(requests, sampling, on_progress)
    except Exception as error:  # boundary: whatever failed here, the other ranks wait for this rank's answer
        return str(error) if isinstance(error, EngineError) else f"{type(error).__name__}: {error}"


def _own(engine: RolloutEngine | None) -> RolloutEngine:
    if engine is None:
        raise EngineError("this rank has to sample but holds no engine; make one on rank 0 of every replica")
    return engine


def _merge(outcomes: Sequence[_Outcome | None], places: list[list[int]], count: int) -> list[Completion]:
    """Put the ranks' completions into request order, or raise what went wrong."""
    failures: list[str] = []
    merged: dict[int, Completion] = {}
    for rank, (part, outcome) in enumerate(zip(places, outcomes, strict=True)):
        if isinstance(outcome, str):
            failures.append(f"rank {rank}: {outcome}")
        else:
            merged.update(zip(part, outcome or (), strict=True))
    if failures:
        raise EngineError(f"sampling failed on {len(failures)} of {len(places)} ranks: {'; '.join(failures)}")
    return [merged[place] for place in range(count)]


def _extrapolate(on_progress: ProgressCallback | None, total: int) -> ProgressCallback | None:
    """Turn a rank's counts into counts of all requests, as if the other ranks were as far."""
    if on_progress is None:
        return None
    callback = on_progress
    return lambda done, share: callback(done * total // share, total)
