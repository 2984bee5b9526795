"""Clipped policy loss and k3, value and gradient, against the formulas one token at a time."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_srpo.algorithms.token_losses import PolicyLoss, clipped_policy_loss, k3_divergence
from tests.algorithms import reference

LOW, HIGH = 0.2, 0.28
# Ratios below, in and above the clip range, and above a dual clip of 3; none on an edge.
RATIOS = [0.01, 0.5, 0.79, 0.81, 1.0, 1.27, 1.29, 2.9, 3.1, 50.0]
ADVANTAGES = [-2.0, -0.5, 0.0, 0.5, 2.0]
GRID = list(itertools.product(RATIOS, ADVANTAGES))


def grid(dual: float | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, PolicyLoss]:
    old = torch.full((len(GRID),), -1.3, dtype=torch.float64)
    ratios, advantages = (torch.tensor(column, dtype=torch.float64) for column in zip(*GRID, strict=True))
    log_prob = (old + ratios.log()).requires_grad_()
    return log_prob, old, advantages, clipped_policy_loss(log_prob, old, advantages, LOW, HIGH, dual)


@pytest.mark.parametrize("dual", [None, 3.0])
def test_values_and_gradients_on_a_grid(dual: float | None) -> None:
    log_prob, old, advantages, result = grid(dual)
    result.loss_R.sum().backward()
    assert log_prob.grad is not None
    rows = list(zip(log_prob.tolist(), old.tolist(), advantages.tolist(), strict=True))
    losses = [reference.policy_loss(*row, LOW, HIGH, dual) for row in rows]
    slopes = [reference.policy_gradient(*row, LOW, HIGH, dual) for row in rows]
    # float64 on both sides; only exp differs in its last bit.
    assert result.loss_R.tolist() == pytest.approx(losses, rel=1e-12, abs=1e-12)
    assert log_prob.grad.tolist() == pytest.approx(slopes, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("dual", [None, 3.0])
def test_flags_say_where_a_clip_was_active(dual: float | None) -> None:
    *_, result = grid(dual)
    assert result.clipped_low_R.tolist() == [float(r < 1 - LOW and a < 0) for r, a in GRID]
    assert result.clipped_high_R.tolist() == [float(r > 1 + HIGH and a > 0) for r, a in GRID]
    assert result.dual_clipped_R.tolist() == [float(dual is not None and r > dual and a < 0) for r, a in GRID]


def test_on_policy_the_gradient_is_minus_the_advantage() -> None:
    """At ratio 1 both branches of the minimum are equal; together they give the whole gradient once."""
    log_prob = torch.tensor([-0.7, -0.7, -0.7], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
    result = clipped_policy_loss(log_prob, log_prob.detach(), advantages, LOW, HIGH, 3.0)
    result.loss_R.sum().backward()
    assert result.loss_R.tolist() == [-1.0, 1.0, 0.0]
    assert log_prob.grad is not None and log_prob.grad.tolist() == [-1.0, 1.0, 0.0]
    assert not (result.clipped_low_R + result.clipped_high_R + result.dual_clipped_R).any()


def test_a_step_against_the_gradient_raises_good_tokens_and_lowers_bad_ones() -> None:
    log_prob = torch.tensor([-1.0, -1.0], requires_grad=True)
    result = clipped_policy_loss(log_prob, torch.tensor([-1.1, -0.9]), torch.tensor([0.7, -0.7]), LOW, HIGH)
    result.loss_R.sum().backward()
    assert log_prob.grad is not None
    assert log_prob.grad[0] < 0 < log_prob.grad[1]


@pytest.mark.parametrize(("gap", "advantage"), [(200.0, -1.0), (-200.0, 1.0), (200.0, 1.0)])
def test_a_vanishing_probability_does_not_overflow(gap: float, advantage: float) -> None:
    log_prob = torch.tensor([gap], requires_grad=True)
    result = clipped_policy_loss(log_prob, torch.zeros(1), torch.tensor([advantage]), LOW, HIGH)
    result.loss_R.sum().backward()
    assert log_prob.grad is not None
    assert bool(result.loss_R.isfinite()) and bool(log_prob.grad.isfinite().all())


tokens = st.lists(
    st.tuples(
        st.floats(min_value=-10, max_value=0),
        st.floats(min_value=-10, max_value=0),
        st.floats(min_value=-3, max_value=3),
    ),
    min_size=1,
    max_size=20,
)


@settings(deadline=None)
@given(
    tokens, st.sampled_from([0.0, 0.2, 1.0]), st.sampled_from([0.0, 0.28, 5.0]), st.sampled_from([None, 3.0])
)
def test_any_tokens(
    rows: list[tuple[float, float, float]], low: float, high: float, dual: float | None
) -> None:
    log_prob, old, advantages = (torch.tensor(c, dtype=torch.float64) for c in zip(*rows, strict=True))
    result = clipped_policy_loss(log_prob, old, advantages, low, high, dual)
    expected = [reference.policy_loss(*row, low, high, dual) for row in rows]
    assert result.loss_R.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)
    # -min(rho A, clip(rho) A) never lies below the plain objective, and a dual clip bounds it from above.
    plain = -(log_prob - old).exp() * advantages
    assert bool((result.loss_R >= torch.minimum(plain, -3.0 * advantages) - 1e-9).all())
    if dual is not None:
        negative = advantages < 0
        assert bool((result.loss_R[negative] <= -dual * advantages[negative] + 1e-9).all())


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-15, 0), st.floats(-15, 0)), min_size=1, max_size=20))
def test_k3_against_the_formula(pairs: list[tuple[float, float]]) -> None:
    log_prob, other = (torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True))
    got = k3_divergence(log_prob, other)
    # Against exp(d) - 1 - d, whose own cancellation error is about 1e-16 * exp(d).
    expected = [reference.k3(*pair) for pair in pairs]
    assert got.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-14)
    assert bool((got >= 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_k3_is_never_negative_however_close_the_policies(dtype: torch.dtype) -> None:
    gaps = torch.cat([10.0 ** torch.linspace(-12, 1.2, 2000, dtype=dtype), torch.zeros(1, dtype=dtype)])
    for sign in (1.0, -1.0):
        assert bool((k3_divergence(torch.zeros_like(gaps), sign * gaps) >= 0).all())


def test_k3_of_equal_policies_is_exactly_zero_and_flat() -> None:
    log_prob = torch.tensor([-0.1, -3.0], requires_grad=True)
    divergence = k3_divergence(log_prob, log_prob.detach().clone())
    divergence.sum().backward()
    assert divergence.tolist() == [0.0, 0.0]
    assert log_prob.grad is not None and log_prob.grad.tolist() == [0.0, 0.0]


def test_k3_estimates_the_divergence() -> None:
    """Its expectation under the policy is KL(policy || reference), here summed over a whole distribution."""
    generator = torch.Generator().manual_seed(5)
    policy, other = torch.randn(2, 30, generator=generator, dtype=torch.float64).log_softmax(-1)
    exact = (policy.exp() * (policy - other)).sum().item()
    estimate = (policy.exp() * k3_divergence(policy, other)).sum().item()
    assert estimate == pytest.approx(exact, rel=1e-12)
    assert exact > 0.1


def test_k3_does_not_overflow() -> None:
    value = k3_divergence(torch.tensor([-500.0]), torch.tensor([0.0])).item()
    assert value == pytest.approx(math.expm1(20) - 20, rel=1e-6)  # float32
