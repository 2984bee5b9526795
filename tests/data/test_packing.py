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
    with pytest.raises(DataError, match=f"sequence 1 has length {length}"):
        balance([3, length], 2)


@given(LENGTHS, st.integers(1, 8), st.sampled_from([50.0, 24576.0]))
def test_balance_holds_every_item_once_and_bounds_the_load(
    lengths: list[int], bins: int, linear_tokens: float
) -> None:
    parts = balance(lengths, bins, linear_tokens)
    assert len(parts) == bins
    assert flat(parts) == list(range(len(lengths)))
    assert parts == balance(list(lengths), bins, linear_tokens)
    if len(lengths) >= bins:
        assert all(parts)
    costs = [sequence_cost(length, linear_tokens) for length in lengths]
    loads = [sum(costs[index] for index in part) for part in parts]
    # Any list schedule: the fullest bin exceeds the mean by less than one item (Graham 1966).
    bound = sum(costs) / bins + max(costs, default=0.0) * (1 - 1 / bins)
    assert max(loads) <= bound * (1 + 1e-12)


def test_balance_weighs_attention() -> None:
    # By tokens 8 = 4 + 4 would be even; attention makes the long sequence cost more than both.
    assert sequence_cost(8, 8) == 16
    parts = balance([8, 4, 4, 2, 1], 2, linear_tokens=8)
    assert parts == [[0], [1, 2, 3, 4]]


def test_balance_needs_a_bin() -> None:
    with pytest.raises(DataError, match="0 bins"):
        balance([1], 0)
