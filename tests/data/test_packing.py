import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_srpo.data.packing import balance, pack, pack_evenly, sequence_cost
from megatron_srpo.errors import ConfigError, DataError

LENGTHS = st.lists(st.integers(1, 100), max_size=60)


def flat(bins: list[list[int]]) -> list[int]:
    return sorted(index for part in bins for index in part)


@given(LENGTHS, st.integers(100, 300))
def test_pack_holds_every_item_once_within_capacity(lengths: list[int], capacity: int) -> None:
    bins = pack(lengths, capacity)
    assert flat(bins) == list(range(len(lengths)))
    assert all(0 < sum(lengths[index] for index in part) <= capacity for part in bins)
    assert all(part == sorted(part) for part in bins)
    assert bins == pack(list(lengths), capacity)


@given(LENGTHS, st.integers(100, 300))
def test_pack_is_near_the_optimum(lengths: list[int], capacity: int) -> None:
    # The optimum is not below the total over the capacity; first-fit leaves at most one bin half empty.
    bins = pack(lengths, capacity)
    loads = sorted(sum(lengths[index] for index in part) for part in bins)
    assert len(bins) >= math.ceil(sum(lengths) / capacity)
    assert all(load * 2 > capacity for load in loads[1:])


def test_pack_by_hand() -> None:
    assert pack([5, 4, 3, 2, 6], 10) == [[1, 4], [0, 2, 3]]
    assert pack([], 10) == []
    assert pack([10], 10) == [[0]]


@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=40), capacity=st.integers(300, 1200))
def test_even_packing_needs_no_more_micro_batches(lengths: list[int], capacity: int) -> None:
    even, packed = pack_evenly(lengths, capacity), pack(lengths, capacity)
    assert len(even) == len(packed)
    assert sorted(index for members in even for index in members) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in members) <= capacity for members in even)
    assert all(even)

    def dearest(bins: list[list[int]]) -> float:
        return max(sum(sequence_cost(lengths[index]) for index in members) for members in bins)

    assert dearest(even) <= dearest(packed)


def test_even_packing_by_hand() -> None:
    assert pack([60, 50, 10, 10], 100) == [[0, 2, 3], [1]]
    assert pack_evenly([60, 50, 10, 10], 100) == [[0], [1, 2, 3]]


def test_pack_refuses_what_cannot_fit() -> None:
    with pytest.raises(ConfigError, match=r"11 tokens does not fit into training.micro_batch_tokens = 10"):
        pack([3, 11], 10)


@pytest.mark.parametrize("length", [0, -1])
def test_lengths_must_be_positive(length: int) -> None:
    with pytest.raises(DataError, match=f"sequence 1 has length {length}"):
        pack([3, length], 10)


@pytest.mark.parametrize("cost", [0.0, -1.0, math.nan])
def test_costs_must_be_positive(cost: float) -> None:
    with pytest.raises(DataError, match=f"piece 1 of the work costs {cost}"):
        balance([3.0, cost], [0.0, 0.0])


COSTS = st.lists(st.integers(1, 1000).map(lambda tenths: tenths / 10), max_size=60)
LOADS = st.lists(st.integers(0, 2000).map(lambda tenths: tenths / 10), min_size=1, max_size=8)


def loads_after(costs: list[float], loads: list[float]) -> tuple[list[list[int]], list[float]]:
    parts = balance(costs, loads)
    return parts, [load + sum(costs[i] for i in part) for load, part in zip(loads, parts, strict=True)]


@given(COSTS, LOADS)
def test_balance_holds_every_item_once_and_bounds_the_load(costs: list[float], loads: list[float]) -> None:
    parts, after = loads_after(costs, loads)
    assert len(parts) == len(loads)
    assert flat(parts) == list(range(len(costs)))
    assert parts == balance(list(costs), list(loads))
    mean = sum(after) / len(after)
    for part, load in zip(parts, after, strict=True):
        if part:
            cheapest = min(costs[index] for index in part)
            # When it was dealt its last piece, nobody carried less, so it carried no more than the mean.
            assert load <= (mean + cheapest * (1 - 1 / len(loads))) * (1 + 1e-12)


@given(COSTS, st.integers(1, 8))
def test_balance_from_nothing_is_near_the_optimum(costs: list[float], bins: int) -> None:
    parts, after = loads_after(costs, [0.0] * bins)
    if len(costs) >= bins:
        assert all(parts)
    # The optimum is at least the mean, the dearest piece, and two of the bins + 1 dearest.
    dearest = sorted(costs, reverse=True)
    pair = dearest[bins - 1] + dearest[bins] if len(costs) > bins else 0.0
    lower = max(sum(costs) / bins, max(costs, default=0.0), pair)
    assert max(after) <= max(lower * 1.5, 0.0) * (1 + 1e-12)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=7), st.integers(2, 3))
def test_balance_keeps_grahams_bound(costs: list[int], bins: int) -> None:
    """Against the true optimum, found by trying everything."""
    _, after = loads_after([float(cost) for cost in costs], [0.0] * bins)
    optimum = min(
        max(sum(cost for cost, at in zip(costs, deal, strict=True) if at == number) for number in range(bins))
        for deal in itertools.product(range(bins), repeat=len(costs))
    )
    assert max(after) <= (4 / 3 - 1 / (3 * bins)) * optimum * (1 + 1e-12)


def test_balance_fills_up_what_is_carried_already() -> None:
    assert balance([4.0, 1.0, 1.0], [0.0, 2.0]) == [[0], [1, 2]]
    assert balance([1.0, 1.0], [0.0, 5.0]) == [[0, 1], []]


def test_attention_weighs_in_a_sequence() -> None:
    assert sequence_cost(8, 8) == 16


def test_balance_needs_a_bin() -> None:
    with pytest.raises(DataError, match="0 bins"):
        balance([1.0], [])
