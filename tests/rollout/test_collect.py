"""Sampling by a whole replica: shares, the exchange, and failures that must reach every rank."""

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from megatron_srpo.errors import EngineError
from megatron_srpo.rollout import collect as collecting
from megatron_srpo.rollout.collect import collect, collect_started, from_first_patiently, shares
from megatron_srpo.rollout.engine import EngineLost, Parallelism, ProgressCallback, RolloutEngine
from megatron_srpo.rollout.local import LocalEngine
from megatron_srpo.rollout.types import Completion, Request, SamplingParams, VersionSpan
from tests.ranks import RankFailure, run_ranks
from tests.rollout.models import make_requests

PARAMS = SamplingParams(1.0, 1.0, 8)


class EchoEngine:
    """Answers with the request's seed and its own label; fails on request ids in ``bad``."""

    weight_version = 2

    def __init__(
        self, parallelism: Parallelism, label: int = 0, bad: str = "", error: type = EngineError
    ) -> None:
        self.parallelism, self.label, self.bad, self.error = parallelism, label, bad, error

    def generate(
        self,
        requests: Sequence[Request],
        sampling: SamplingParams,
        on_progress: ProgressCallback | None = None,
    ) -> list[Completion]:
        for done, request in enumerate(requests, start=1):
            if request.id == self.bad:
                raise self.error(f"cannot answer {request.id}")
            if on_progress:
                on_progress(done, len(requests))
        spans = (VersionSpan(2, 2),)
        return [Completion(r.id, (r.seed % 1000, self.label), (0.0, 0.0), "stop", spans) for r in requests]

    def close(self) -> None:
        pass


def echo(rank: int, world: int, parallelism: Parallelism, requests: list[Request]) -> tuple:
    seen: list[tuple[int, int]] = []
    engine = EchoEngine(parallelism, label=rank)
    answers = collect(engine, requests, PARAMS, dist.group.WORLD, lambda *counts: seen.append(counts))
    return answers, seen


def test_every_rank_takes_a_share_and_all_get_everything() -> None:
    requests = make_requests(prompts=6, samples=2)[::-1]
    (first, seen), (second, _) = run_ranks(2, echo, "every_rank", requests)
    assert first == second
    assert [completion.request_id for completion in first] == [request.id for request in requests]
    assert [completion.tokens[0] for completion in first] == [request.seed % 1000 for request in requests]
    assert sorted(completion.tokens[1] for completion in first) == [0] * 6 + [1] * 6
    assert seen == [(2 * done, 12) for done in range(1, 7)]


def test_the_leader_samples_for_all() -> None:
    requests = make_requests()
    (first, seen), (second, none) = run_ranks(2, echo, "leader", requests)
    assert first == second
    assert [completion.request_id for completion in first] == [request.id for request in requests]
    assert {completion.tokens[1] for completion in first} == {0}
    assert seen == [(done, 15) for done in range(1, 16)]
    assert none == []


@pytest.mark.parametrize("parallelism", ["leader", "every_rank"])
def test_no_requests(parallelism: Parallelism) -> None:
    assert run_ranks(2, echo, parallelism, []) == [([], []), ([], [])]


def only_the_leader_holds_an_engine(rank: int, world: int, leader: int) -> list[Completion]:
    engine = EchoEngine("leader") if rank == leader else None
    return collect(engine, make_requests(2, 1), PARAMS, dist.group.WORLD)


def test_other_ranks_need_no_engine_under_a_leader() -> None:
    first, second = run_ranks(2, only_the_leader_holds_an_engine, 0)
    assert first == second
    assert len(first) == 2


def in_pairs(rank: int, world: int) -> list[str]:
    """Two replicas of two ranks with requests of their own; the second's leader is global rank 2."""
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    requests = make_requests(prompts=2, samples=1 + rank // 2)
    engine = EchoEngine("leader", label=rank) if rank % 2 == 0 else None
    return [
        f"{completion.request_id} by {completion.tokens[1]}"
        for completion in collect(engine, requests, PARAMS, groups[rank // 2])
    ]


def test_replicas_are_independent() -> None:
    results = run_ranks(4, in_pairs)
    assert results[0] == results[1] == ["0/0 by 0", "1/0 by 0"]
    assert results[2] == results[3] == ["0/0 by 2", "0/1 by 2", "1/0 by 2", "1/1 by 2"]


def failing(rank: int, world: int, parallelism: Parallelism, bad: str, error: type) -> str:
    engine = EchoEngine(parallelism, bad=bad, error=error)
    try:
        collect(engine, make_requests(), PARAMS, dist.group.WORLD)
    except EngineError as raised:
        return str(raised)
    return "no error"


@pytest.mark.parametrize("parallelism", ["leader", "every_rank"])
@pytest.mark.parametrize("error", [EngineError, RuntimeError])
def test_a_failure_reaches_all_ranks(parallelism: Parallelism, error: type) -> None:
    first, second = run_ranks(2, failing, parallelism, "4/0", error, timeout=60)
    assert first == second
    assert "cannot answer 4/0" in first
    assert ("RuntimeError" in first) == (error is RuntimeError)


def no_engine_at_all(rank: int, world: int) -> str:
    with pytest.raises(EngineError) as raised:
        collect(None, make_requests(), PARAMS, dist.group.WORLD)
    return str(raised.value)


def test_a_leader_without_an_engine() -> None:
    first, second = run_ranks(2, no_engine_at_all, timeout=60)
    assert first == second
    assert "holds no engine" in first


def local(rank: int, world: int, folder: Path, requests: list[Request]) -> list[Completion]:
    return collect(LocalEngine(folder), requests, PARAMS, dist.group.WORLD)


def test_two_local_engines_answer_like_one(model_folder: Path) -> None:
    requests = make_requests()
    alone = collect(LocalEngine(model_folder), requests, PARAMS)
    first, second = run_ranks(2, local, model_folder, requests)
    assert first == second
    assert [completion.tokens for completion in first] == [completion.tokens for completion in alone]
    for left, right in zip(first, alone, strict=True):
        assert left.log_probs == pytest.approx(
            right.log_probs, abs=1e-4
        )  # other batch sizes round differently


def test_one_process_without_a_group() -> None:
    engine: RolloutEngine = EchoEngine("every_rank")
    assert [c.request_id for c in collect(engine, make_requests(2, 1), PARAMS)] == ["0/0", "1/0"]
    with pytest.raises(EngineError, match="holds no engine"):
        collect(None, make_requests(2, 1), PARAMS)


prompt_sets = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 12)), max_size=12)


@given(prompt_sets, st.integers(1, 5))
def test_shares_are_a_balanced_partition(prompts: list[tuple[int, int]], ranks: int) -> None:
    requests = [
        Request(f"{index}/{sample}", (index,) * length, sample)
        for index, (length, samples) in enumerate(prompts)
        for sample in range(samples)
    ]
    dealt = shares(requests, ranks, max_new_tokens=100)
    assert len(dealt) == ranks
    assert sorted(place for share in dealt for place in share) == list(range(len(requests)))
    largest_run = max([min(samples, -(-len(requests) // ranks)) for _, samples in prompts], default=0)
    sizes = [len(share) for share in dealt]
    # Greedy dealing: no rank is ahead by more than the last run that it was given. A prompt counts at most 5
    # tokens beside 100 per response, and 12 prompts of 5 stay below one response.
    assert max(sizes) - min(sizes) <= largest_run


def test_shares_keep_a_prompts_samples_together() -> None:
    requests = make_requests(prompts=8, samples=4)
    for share in shares(requests[::2] + requests[1::2], 2, 50):
        ordered = requests[::2] + requests[1::2]
        prompts = [ordered[place].prompt_tokens for place in share]
        assert len(prompts) == 16
        assert all(prompts.count(prompt) == 4 for prompt in prompts)


def test_one_large_prompt_group_is_cut() -> None:
    requests = make_requests(prompts=1, samples=10)
    assert [len(share) for share in shares(requests, 3, 50)] == [4, 4, 2]


def slowly() -> str:
    time.sleep(3)
    return "at last"


def wait_patiently(rank: int, world: int) -> str:
    """Wait three seconds for the first rank, in a group whose collectives give up after one."""
    collecting.STILL_AT_IT_S = 0.2
    group = dist.new_group([0, 1], timeout=timedelta(seconds=1))
    return from_first_patiently(slowly if rank == 0 else None, group)


def test_a_rank_that_says_that_it_is_still_at_it_is_waited_for() -> None:
    assert run_ranks(2, wait_patiently) == ["at last", "at last"]


def wait_impatiently(rank: int, world: int) -> str:
    group = dist.new_group([0, 1], timeout=timedelta(seconds=1))
    box = [slowly() if rank == 0 else None]
    dist.broadcast_object_list(box, group=group, group_src=0)
    return str(box[0])


def test_without_that_the_wait_would_fail() -> None:
    """What the patience is for; it would be needless if this passed."""
    with pytest.raises(RankFailure, match=r"(?i)timed? ?out"):
        run_ranks(2, wait_impatiently)


class Started:
    """A generation that ends as it is told."""

    def __init__(self, end: Callable[[], list[Completion]]) -> None:
        self.end = end

    def result(self) -> list[Completion]:
        return self.end()

    def cancel(self) -> None:
        pass


def started(rank: int, world: int, how: str) -> str:
    def end() -> list[Completion]:
        if how == "well":
            return EchoEngine("leader").generate(requests, PARAMS)
        raise (EngineLost if how == "lost" else EngineError)("gone")

    requests = make_requests(2, 1)
    try:
        found = collect_started(Started(end) if rank == 0 else None, len(requests), dist.group.WORLD)
    except EngineError as error:
        return f"{type(error).__name__}: {error}"
    return " ".join(completion.request_id for completion in found)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("well", "0/0 1/0"),
        ("lost", "EngineLost: sampling failed on 1 of 1 ranks: rank 0: gone"),
        ("badly", "EngineError: sampling failed on 1 of 1 ranks: rank 0: gone"),
    ],
)
def test_all_ranks_learn_how_a_started_generation_ended(how: str, expected: str) -> None:
    assert run_ranks(2, started, how) == [expected, expected]


def test_a_leader_that_started_nothing_is_an_error() -> None:
    with pytest.raises(EngineError, match="has started no generation"):
        collect_started(None, 3)
