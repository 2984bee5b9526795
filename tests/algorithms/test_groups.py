"""Group statistics against the formulas, one rollout at a time."""

from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_srpo.algorithms.groups import group_advantages, has_sibling, siblings
from tests.algorithms import reference
from tests.algorithms.reference import Sample
from tests.algorithms.strategies import batches

# Both sides compute in float64 and sum at most a few dozen numbers of size 1.
EXACT: dict[str, Any] = {"rel": 1e-12, "abs": 1e-12}


def advantages(rewards: list[float], groups: list[int], by_std: bool = False) -> list[float]:
    return group_advantages(torch.tensor(rewards), torch.tensor(groups), by_std).tolist()


def test_centred_on_the_groups_mean() -> None:
    assert advantages([1.0, 0.0, 0.0, 1.0, 1.0], [0, 0, 0, 0, 5]) == [0.5, -0.5, -0.5, 0.5, 0.0]


def test_divided_by_the_unbiased_standard_deviation() -> None:
    # Rewards 1, 0, 0, 0: mean 1/4, variance (9/16 + 3/16) / 3 = 1/4, deviation 1/2.
    got = advantages([1.0, 0.0, 0.0, 0.0], [2, 2, 2, 2], by_std=True)
    assert got == pytest.approx([1.5, -0.5, -0.5, -0.5], rel=3e-6)  # the 1e-6 beside the deviation of 0.5


@pytest.mark.parametrize("by_std", [False, True])
def test_a_group_of_one_has_no_advantage(by_std: bool) -> None:
    assert advantages([1.0], [4], by_std) == [0.0]
    assert advantages([1.0, 0.0], [4, 5], by_std) == [0.0, 0.0]


@pytest.mark.parametrize("by_std", [False, True])
@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_a_group_of_equals_has_no_advantage(reward: float, by_std: bool) -> None:
    assert advantages([reward] * 8, [0] * 8, by_std) == [0.0] * 8


def test_an_empty_batch() -> None:
    assert advantages([], []) == []


@settings(deadline=None)
@given(batches, st.booleans())
def test_against_the_formula(batch: list[Sample], by_std: bool) -> None:
    got = advantages([sample.reward for sample in batch], [sample.group for sample in batch], by_std)
    expected = [reference.advantage(batch, index, by_std) for index in range(len(batch))]
    # float32 rewards: 0.49 is not the same number on both sides.
    assert got == pytest.approx(expected, rel=1e-6, abs=1e-7)


@settings(deadline=None)
@given(batches)
def test_advantages_of_a_group_sum_to_zero(batch: list[Sample]) -> None:
    rewards = torch.tensor([sample.reward for sample in batch], dtype=torch.float64)
    groups = torch.tensor([sample.group for sample in batch])
    got = group_advantages(rewards, groups, False)
    for group in groups.unique():
        assert got[groups == group].sum().item() == pytest.approx(0.0, **EXACT)


@settings(deadline=None)
@given(batches, st.randoms(use_true_random=False), st.booleans())
def test_the_order_of_rollouts_does_not_matter(batch: list[Sample], random: Random, by_std: bool) -> None:
    order = list(range(len(batch)))
    random.shuffle(order)
    rewards = [sample.reward for sample in batch]
    groups = [sample.group for sample in batch]
    plain = advantages(rewards, groups, by_std)
    shuffled = advantages([rewards[i] for i in order], [groups[i] for i in order], by_std)
    # Sums of the same numbers in another order; divided by a deviation that may be as small as the 1e-6.
    assert shuffled == pytest.approx([plain[i] for i in order], rel=1e-9, abs=1e-9)


@settings(deadline=None)
@given(batches)
def test_the_names_of_groups_do_not_matter(batch: list[Sample]) -> None:
    rewards = [sample.reward for sample in batch]
    renamed = {0: 50, 3: 2, 7: 1, 1000: 7}
    assert advantages(rewards, [s.group for s in batch]) == pytest.approx(
        advantages(rewards, [renamed[s.group] for s in batch]), **EXACT
    )


@settings(deadline=None)
@given(batches)
def test_siblings_never_include_oneself(batch: list[Sample]) -> None:
    groups = torch.tensor([sample.group for sample in batch])
    marked = torch.tensor([reference.is_correct(s) and s.demonstrable for s in batch])
    flags = has_sibling(marked, groups).tolist()
    for index in range(len(batch)):
        expected = reference.demonstrators(batch, index)
        assert siblings(index, marked, groups) == expected
        assert index not in expected
        assert flags[index] is bool(expected)
