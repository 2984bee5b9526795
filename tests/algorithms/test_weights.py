"""Per-token weights against the formulas: teacher entropy, engine mismatch, aggregation."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_srpo.algorithms.weights import aggregation_weights, capped_ratio, entropy_weights
from tests.algorithms import reference

entropies = st.lists(st.floats(min_value=0.0, max_value=12.0), min_size=1, max_size=20)
log_probs = st.floats(min_value=-60.0, max_value=0.0)


def doubles(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@settings(deadline=None)
@given(entropies, st.floats(min_value=0.0, max_value=5.0))
def test_entropy_weights(values: list[float], beta: float) -> None:
    got = entropy_weights(doubles(values), beta).tolist()
    # float64 exp; the relative error of exp(-60) is that of its argument times 60.
    assert got == pytest.approx([math.exp(-beta * value) for value in values], rel=1e-12)


@settings(deadline=None)
@given(entropies)
def test_beta_zero_weighs_every_token_exactly_one(values: list[float]) -> None:
    assert entropy_weights(torch.tensor(values), 0.0).tolist() == [1.0] * len(values)


def test_a_surer_teacher_weighs_more() -> None:
    weights = entropy_weights(doubles([0.0, 0.1, 1.0, 5.0]), 1.0)
    assert weights[0] == 1.0
    assert bool((weights.diff() < 0).all())


@settings(deadline=None)
@given(st.lists(st.tuples(log_probs, log_probs), min_size=1, max_size=20), st.sampled_from([1.0, 2.0, 10.0]))
def test_capped_ratio(pairs: list[tuple[float, float]], cap: float) -> None:
    ours, theirs = (doubles(list(column)) for column in zip(*pairs, strict=True))
    got = capped_ratio(ours, theirs, cap).tolist()
    assert got == pytest.approx([reference.importance(a, b, cap) for a, b in pairs], rel=1e-12)
    assert all(0.0 < value <= cap for value in got)


def test_the_log_ratio_is_clamped_to_twenty() -> None:
    """A token of vanishing probability neither overflows nor weighs exactly nothing."""
    ours, theirs = doubles([-1e4, 0.0, -20.0, -20.1]), doubles([0.0, -1e4, 0.0, 0.0])
    expected = [math.exp(-20), math.exp(20), math.exp(-20), math.exp(-20)]
    assert capped_ratio(ours, theirs, 1e30).tolist() == pytest.approx(expected, rel=1e-12)
    assert capped_ratio(ours.float(), theirs.float(), 2.0)[1] == 2.0


def test_no_cap_means_no_ratio() -> None:
    assert capped_ratio(doubles([-1.0, -5.0]), doubles([-9.0, -1.0]), None).tolist() == [1.0, 1.0]


def test_equal_engines_weigh_exactly_one() -> None:
    values = torch.tensor([-0.3, -7.0])
    assert capped_ratio(values, values.clone(), 2.0).tolist() == [1.0, 1.0]


@settings(deadline=None)
@given(st.integers(min_value=1, max_value=1000))
def test_aggregation(length: int) -> None:
    assert aggregation_weights(length, "token_mean").tolist() == [1.0] * length
    per_sequence = aggregation_weights(length, "seq_mean_token_mean")
    assert per_sequence.tolist() == [1.0 / length] * length
    # Every sequence weighs 1 in total: a float64 sum of at most a thousand terms.
    assert per_sequence.sum().item() == pytest.approx(1.0, rel=1e-12)
