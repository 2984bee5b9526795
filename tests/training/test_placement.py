"""Who computes what: every rollout once, all replicas the same work."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_srpo.data.packing import sequence_cost
from megatron_srpo.model.architecture import Experts, Qwen3Architecture
from megatron_srpo.training.placement import Placement, RolloutSize, WorkCosts, at_home, dealt_out

COSTS = WorkCosts(linear_tokens=200.0, head=0.5)
EXACT = 1 + 1e-12  # sums of doubles in another order


@st.composite
def steps(draw: st.DrawFn) -> list[list[RolloutSize]]:
    """Rollouts of 1 to 6 replicas, equally many of each, in 1 to 3 mini-batches."""
    replicas, count = draw(st.integers(1, 6)), draw(st.integers(1, 12))
    mini_batch = draw(st.integers(max(1, count // 3), count))
    length = st.integers(1, 300)

    def size(index: int) -> RolloutSize:
        trained = draw(st.booleans())
        taught = draw(length) if trained and draw(st.booleans()) else 0
        return RolloutSize(draw(length), draw(length), trained, taught, index // mini_batch)

    return [[size(index) for index in range(count)] for _ in range(replicas)]


def loads(placed: list[int], costs: list[float], replicas: int) -> list[float]:
    return [sum(c for c, at in zip(costs, placed, strict=True) if at == number) for number in range(replicas)]


@given(steps(), st.booleans(), st.booleans())
def test_every_rollout_is_computed_once_and_where_that_is_allowed(
    sizes: list[list[RolloutSize]], reference: bool, fill: bool
) -> None:
    costs = replace(COSTS, reference=reference)
    home, dealt = at_home(sizes, costs), dealt_out(sizes, costs, fill)
    every = [size for own in sizes for size in own]
    for placement in (home, dealt):
        assert all(0 <= place < len(sizes) for place in placement.scored)
        for size, place in zip(every, placement.trained, strict=True):
            assert (0 <= place < len(sizes)) if size.trained else place == -1
        assert len(placement.scored) == len(placement.trained) == len(every)
    assert dealt == dealt_out([list(own) for own in sizes], costs, fill)
    assert 1 / EXACT <= dealt.slowest <= home.slowest
    if len(sizes) == 1:
        assert dealt.slowest == pytest.approx(1.0)


@given(steps())
def test_work_between_meetings_is_even_up_to_one_rollout(sizes: list[list[RolloutSize]]) -> None:
    """No replica does more than the mean and one rollout (Graham 1966), unless all stay at home."""
    placement, every, replicas = dealt_out(sizes, COSTS), [size for own in sizes for size in own], len(sizes)
    if placement == at_home(sizes, COSTS):
        return
    for number in {size.mini_batch for size in every}:
        of_this = [
            at if size.mini_batch == number else -1 for size, at in zip(every, placement.trained, strict=True)
        ]
        costs = [COSTS.updating(size) for size in every]
        carried = loads(of_this, costs, replicas)
        dearest = max((c for c, at in zip(costs, of_this, strict=True) if at >= 0), default=0.0)
        assert max(carried) <= (sum(carried) / replicas + dearest * (1 - 1 / replicas)) * EXACT
    taught = loads(placement.trained, [COSTS.preparing(size) for size in every], replicas)
    scored = loads(placement.scored, [COSTS.scoring(size) for size in every], replicas)
    both = [sum(pair) for pair in zip(taught, scored, strict=True)]
    dearest = max(COSTS.scoring(size) for size in every)
    even = sum(both) / replicas + dearest * (1 - 1 / replicas)
    assert max(both) <= max(even, *taught) * EXACT


def test_one_replica_with_all_the_long_rollouts() -> None:
    """Eight rollouts of 400 tokens on one of four replicas, of 40 on the others: even to a few percent."""
    long, short = RolloutSize(100, 300, True, 0, 0), RolloutSize(10, 30, True, 0, 0)
    sizes = [[long] * 8, [short] * 8, [short] * 8, [short] * 8]
    home, dealt = at_home(sizes, COSTS), dealt_out(sizes, COSTS)
    assert home.slowest > 3.5
    # Two of the long ones and six short ones for each replica.
    assert dealt.slowest == pytest.approx(1.0)
    assert [dealt.trained[:8].count(replica) for replica in range(4)] == [2, 2, 2, 2]


def test_scores_fill_up_what_teaching_leaves_uneven() -> None:
    """Costs are tokens here: a lesson of 60, eight scores of 10 each."""
    costs = WorkCosts(linear_tokens=1e12, head=0.0)
    plain = RolloutSize(1, 10, False, 0, 0)
    sizes = [[RolloutSize(1, 10, True, 51, 0), plain, plain, plain], [plain, plain, plain, plain]]
    placement = dealt_out(sizes, costs)
    assert placement.trained[0] == 0 and placement.trained[1:] == [-1] * 7
    # The replica that teaches for 60 scores one; the other seven make up the same 70.
    assert sorted(placement.scored) == [0, 1, 1, 1, 1, 1, 1, 1]
    # Where replicas meet in every layer, each pass is even by itself.
    assert sorted(dealt_out(sizes, costs, fill=False).scored) == [0] * 4 + [1] * 4


def test_slowest_by_hand() -> None:
    costs = WorkCosts(linear_tokens=1e12, head=0.0)

    def size(response: int, mini_batch: int, taught: int = 0) -> RolloutSize:
        return RolloutSize(1, response, True, taught, mini_batch)

    sizes = [[size(10, 0), size(10, 1, taught=11)], [size(20, 0), size(20, 1)]]
    # Before: 20 + 20 against 40. First step 30 against 60, second the same: (40 + 60 + 60) / (40 + 45 + 45).
    assert at_home(sizes, costs).slowest == pytest.approx(160 / 130)
    assert at_home(sizes, replace(costs, update=4.0)).slowest == pytest.approx(
        (40 + 80 + 80) / (40 + 60 + 60)
    )
    # A reference scores each trained rollout once more: 40 against 80 in place of 20 + 20 against 40.
    assert at_home(sizes, replace(costs, reference=True)).slowest == pytest.approx(200 / (70 + 45 + 45))
    assert at_home(sizes[:1], costs) == Placement([0, 0], [0, 0], 1.0)


def test_costs_follow_the_architecture() -> None:
    """Multiplications counted one matrix at a time, for Qwen3-4B and Qwen3-30B-A3B."""
    dense = Qwen3Architecture(36, 2560, 9728, 32, 8, 128, 151936, 40960, 1e6, 1e-6, True, 0.02)
    costs = WorkCosts.of(dense, "full", True)
    query, kv = 2560 * 4096, 2560 * 1024
    layer = query + kv + kv + query + 3 * 2560 * 9728
    assert costs.linear_tokens == pytest.approx(layer / 4096)
    assert costs.head == pytest.approx(151936 * 2560 / (36 * layer))
    assert (costs.update, costs.reference) == (4.0, True)
    assert costs.forward(100, 50) == pytest.approx(sequence_cost(149, layer / 4096) + 50 * costs.head)

    mixture = replace(dense, experts=Experts(128, 8, 768, True, dense_layers=(0,)))
    attention, sparse, full = 2 * (query + kv), 3 * 2560 * 8 * 768, 3 * 2560 * 9728
    costs = WorkCosts.of(mixture, "selective", False)
    assert costs.linear_tokens == pytest.approx((36 * attention + 35 * sparse + full) / 36 / 4096)
    assert (costs.update, costs.reference) == (3.0, False)
