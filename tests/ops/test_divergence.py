"""Divergences on vocabulary shards: exactness, identities, limits, stability and cost."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_srpo.errors import ConfigError
from megatron_srpo.ops import (
    VocabShard,
    sampled_token_divergence,
    vocab_parallel_divergence,
    vocab_parallel_logits,
    vocab_parallel_topk_divergence,
)
from tests.ops import reference
from tests.ops.harness import ALPHAS, EDGES, Case, cases, check, large_saved_tensors
from tests.ranks import run_ranks

INF = float("inf")
OPERATIONS = ["divergence", "topk_divergence"]
EDGES_OF_ALL_FORMS = [
    replace(case, alpha=alpha, tail=tail)
    for case in EDGES
    for alpha in (0.0, 0.5, 1.0)
    for tail in (True, False)
]


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("world", [1, 2, 4])
def test_matches_the_dense_reference_in_edge_cases(operation: str, world: int) -> None:
    check(operation, world, EDGES_OF_ALL_FORMS)


@pytest.mark.parametrize("operation", OPERATIONS)
@given(cases())
@settings(deadline=None, max_examples=100)
def test_matches_the_dense_reference(operation: str, case: Case) -> None:
    check(operation, 1, [case])


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("world", [2, 4])
@given(st.lists(cases(), min_size=4, max_size=12))
@settings(deadline=None, max_examples=4)
def test_sharded_matches_the_dense_reference(operation: str, world: int, batch: list[Case]) -> None:
    check(operation, world, batch)


Pair = list[torch.Tensor]


def logits_pair(tokens: int = 4, vocab_size: int = 12, dtype: torch.dtype = torch.float64) -> Pair:
    generator = torch.Generator().manual_seed(tokens + vocab_size)
    return [2 * torch.randn(tokens, vocab_size, generator=generator, dtype=dtype) for _ in range(2)]


def whole(logits: torch.Tensor) -> VocabShard:
    return VocabShard(None, logits.shape[1], logits.shape[1])


@pytest.mark.parametrize("alpha", ALPHAS)
def test_gradcheck_of_the_full_form(alpha: float) -> None:
    student, teacher = logits_pair(3, 7)
    shard = VocabShard(None, 5, 7)
    assert torch.autograd.gradcheck(
        lambda x: vocab_parallel_divergence(x, teacher, alpha, shard), student.requires_grad_()
    )


@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_gradcheck_of_the_topk_form(alpha: float, tail: bool) -> None:
    student, teacher = logits_pair(3, 7)
    shard = VocabShard(None, 6, 7)
    assert torch.autograd.gradcheck(
        lambda x: vocab_parallel_topk_divergence(x, teacher, alpha, 3, shard, tail), student.requires_grad_()
    )


@given(cases())
@settings(deadline=None)
def test_equal_distributions_have_no_divergence_and_no_gradient(case: Case) -> None:
    logits = torch.randn(case.tokens, case.vocab_size) * case.scale
    shard = whole(logits)
    student = logits.clone().requires_grad_()
    full = vocab_parallel_divergence(student, logits, case.alpha, shard)
    top = vocab_parallel_topk_divergence(student, logits, case.alpha, case.k, shard, case.tail)
    assert not full.any() and not top.any()
    (full + top).sum().backward()
    # Exactly 0 in exact arithmetic; forward KL with top-k subtracts probabilities, rounded at 6e-8 x log-
    # prob.
    assert student.grad is not None and (student.grad.abs() <= 1e-5).all()


@given(cases())
@settings(deadline=None)
def test_divergences_are_not_negative_and_jensen_shannon_is_bounded_and_symmetric(case: Case) -> None:
    generator = torch.Generator().manual_seed(case.seed)
    p, q = (torch.randn(case.tokens, case.vocab_size, generator=generator) * case.scale for _ in range(2))
    shard = whole(p)
    # Not below 0 by more than rounding of terms of size 1 summed over the vocabulary.
    assert (vocab_parallel_divergence(p, q, case.alpha, shard) >= -1e-6).all()
    one, other = vocab_parallel_divergence(p, q, 0.5, shard), vocab_parallel_divergence(q, p, 0.5, shard)
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)  # sums of the same terms in another form
    assert (one <= math.log(2) + 1e-6).all()


def test_exchange_of_sides_is_exchange_of_alpha() -> None:
    p, q = logits_pair()
    for alpha in (0.0, 0.2, 0.5, 0.9, 1.0):
        one = vocab_parallel_divergence(p, q, alpha, whole(p))
        other = vocab_parallel_divergence(q, p, 1 - alpha, whole(p))
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)  # float64 rounding


@pytest.mark.parametrize("side", [0.0, 1.0])
def test_the_middle_form_tends_to_alpha_times_kl_at_both_ends(side: float) -> None:
    student, teacher = (item / 4 for item in logits_pair())
    shard = whole(student)
    kl = vocab_parallel_divergence(student, teacher, side, shard)
    for small in (1e-2, 1e-4, 1e-6):
        scaled = vocab_parallel_divergence(student, teacher, abs(side - small), shard) / small
        # The next term is of relative size alpha x chi-square / KL, which is about 2 for these gentle logits.
        torch.testing.assert_close(scaled, kl, rtol=5 * small, atol=0)


@pytest.mark.parametrize("alpha", [1e-9, 1e-6, 1e-3, 1 - 1e-3, 1 - 1e-6])
def test_alphas_near_the_ends_are_not_rounded_away_in_float32(alpha: float) -> None:
    student, teacher = logits_pair(6, 40, torch.float32)
    student, teacher = student * 10, teacher * 10
    loss = vocab_parallel_divergence(student, teacher, alpha, whole(student)).double()
    expected = reference.divergence(student.double(), teacher.double(), alpha)
    # Logits of size 60 are rounded at 60 x 6e-8 = 4e-6, and their differences enter the result directly.
    torch.testing.assert_close(loss, expected, rtol=2e-5, atol=0)


def test_topk_over_the_whole_vocabulary_is_the_full_form() -> None:
    student, teacher = logits_pair()
    shard = VocabShard(None, 12, 12)
    for alpha in ALPHAS:
        full = vocab_parallel_divergence(student, teacher, alpha, shard)
        without = vocab_parallel_topk_divergence(student, teacher, alpha, 12, shard, tail=False)
        torch.testing.assert_close(without, full, rtol=1e-12, atol=1e-13)
        # The empty tail is held at 1e-7 on both sides, where it adds nothing: equal logarithms.
        with_tail = vocab_parallel_topk_divergence(student, teacher, alpha, 12, shard, tail=True)
        torch.testing.assert_close(with_tail, full, rtol=1e-12, atol=1e-13)


def test_the_tail_makes_the_topk_form_a_lower_bound() -> None:
    student, teacher = logits_pair(20, 30)
    shard = whole(student)
    for alpha in ALPHAS:  # merging events into a bucket cannot raise a divergence
        bounds = [vocab_parallel_topk_divergence(student, teacher, alpha, k, shard) for k in (1, 5, 20, 30)]
        assert all((low <= high + 1e-12).all() for low, high in pairwise(bounds))


def test_the_clamp_of_the_tail_is_the_specified_one() -> None:
    student = torch.tensor([[40.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[0.0, 1.0, 0.5]], dtype=torch.float64)
    for alpha in ALPHAS:
        loss = vocab_parallel_topk_divergence(student, teacher, alpha, 1, whole(teacher))
        expected = reference.topk_divergence(student, teacher, alpha, 1, True)
        # The student's tail of 1e-17 counts as 1e-7; 1 - exp(-1e-7) is known to 1e-9 in the reference.
        torch.testing.assert_close(loss, expected, rtol=1e-8, atol=1e-15)
    (gradient,) = torch.autograd.grad(loss, student)
    assert gradient.abs().max() < 1e-6  # past the clamp the tail pulls no more


def test_a_small_tail_keeps_its_digits_in_float32() -> None:
    """A student sure of the wrong token: 1 - mass would be good to 1e-7 / 2e-6 = 5 % only."""
    student = torch.tensor([[13.0, 0.0, -1.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, 3.0, 1.0]])
    loss = vocab_parallel_topk_divergence(student, teacher, 0.0, 1, whole(teacher))
    exact = student.detach().double().requires_grad_()
    expected = reference.topk_divergence(exact, teacher.double(), 0.0, 1, True)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)  # float32's own rounding
    (gradient,), (wanted,) = torch.autograd.grad(loss, student), torch.autograd.grad(expected, exact)
    torch.testing.assert_close(gradient.double(), wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_small_divergences_keep_their_digits_in_float32(alpha: float) -> None:
    generator = torch.Generator().manual_seed(0)
    student = 3 * torch.randn(8, 500, generator=generator)
    teacher = student + 1e-3 * torch.randn(8, 500, generator=generator)
    expected = reference.divergence(student.double(), teacher.double(), alpha)
    assert expected.min() > 1e-10 and expected.max() < 2e-6
    loss = vocab_parallel_divergence(student, teacher, alpha, whole(student)).double()
    # A log-ratio of 1e-3 between logits of size 10 is known to 6e-7 / 1e-3; 1e-7 would be lost altogether if
    # probabilities were subtracted from 1.
    torch.testing.assert_close(loss, expected, rtol=2e-3, atol=1e-10)


EXTREME = torch.tensor(
    [[1e4, -1e4, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0], [-1e4, 1e4, 1e4, -1e4], [5.0, -90.0, 90.0, 0.0]]
)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("form", ["full", "tail", "no tail"])
def test_extreme_logits_give_finite_exact_results(alpha: float, form: str) -> None:
    pairs = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    student, teacher = EXTREME[pairs[:, 0]].requires_grad_(), EXTREME[pairs[:, 1]]
    exact = student.detach().double().requires_grad_()
    if form == "full":
        loss = vocab_parallel_divergence(student, teacher, alpha, whole(teacher))
        expected = reference.divergence(exact, teacher.double(), alpha)
    else:
        loss = vocab_parallel_topk_divergence(student, teacher, alpha, 2, whole(teacher), form == "tail")
        expected = reference.topk_divergence(exact, teacher.double(), alpha, 2, form == "tail")
    # float32 relative; absolutely 1e-5 of results between 0 and 2e4.
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    (wanted,) = torch.autograd.grad(expected.sum(), exact)
    assert torch.isfinite(gradient).all()
    torch.testing.assert_close(gradient.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_impossible_entries_count_as_zero(alpha: float) -> None:
    """Columns impossible on both sides change nothing; on one side they leave Jensen-Shannon finite."""
    student, teacher = logits_pair(2, 5)
    gone = torch.full((2, 2), -INF, dtype=torch.float64)
    wide = torch.cat([student, gone], dim=1).requires_grad_()
    loss = vocab_parallel_divergence(wide, torch.cat([teacher, gone], dim=1), alpha, whole(wide))
    torch.testing.assert_close(loss, reference.divergence(student, teacher, alpha))
    (gradient,) = torch.autograd.grad(loss.sum(), wide)
    assert torch.isfinite(gradient).all() and not gradient[:, 5:].any()


def test_disjoint_distributions() -> None:
    student = torch.tensor([[0.0, -INF]], requires_grad=True)
    teacher = torch.tensor([[-INF, 0.0]])
    shard = whole(teacher)
    loss = vocab_parallel_divergence(student, teacher, 0.5, shard)
    torch.testing.assert_close(loss, torch.tensor([math.log(2)]))
    (gradient,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(gradient, torch.zeros(1, 2))
    for alpha in (0.0, 1.0):
        assert vocab_parallel_divergence(student.detach(), teacher, alpha, shard).tolist() == [INF]


@pytest.mark.parametrize("form", [vocab_parallel_divergence, vocab_parallel_topk_divergence])
def test_the_teacher_gets_no_gradient(form: Callable[..., torch.Tensor]) -> None:
    student, teacher = (item.requires_grad_() for item in logits_pair())
    settings = {} if form is vocab_parallel_divergence else {"k": 3}
    form(student, teacher, alpha=0.5, shard=whole(student), **settings).sum().backward()
    assert teacher.grad is None and student.grad is not None


@pytest.mark.parametrize("tail", [True, False])
def test_bf16_logits_are_computed_in_float32(tail: bool) -> None:
    student, teacher = (item.bfloat16() for item in logits_pair(3, 9))
    exact, exact_teacher, shard = student.double(), teacher.double(), whole(student)
    student.requires_grad_()
    full = vocab_parallel_divergence(student, teacher, 0.3, shard)
    top = vocab_parallel_topk_divergence(student, teacher, 0.3, 4, shard, tail)
    assert full.dtype == top.dtype == torch.float32
    # Inputs are exact in float32: only its own rounding is left.
    expected = reference.divergence(exact, exact_teacher, 0.3)
    torch.testing.assert_close(full.double(), expected, rtol=1e-5, atol=1e-6)
    expected = reference.topk_divergence(exact, exact_teacher, 0.3, 4, tail)
    torch.testing.assert_close(top.double(), expected, rtol=1e-5, atol=1e-6)
    (full + top).sum().backward()
    assert student.grad is not None and student.grad.dtype == torch.bfloat16


def test_one_buffer_of_logits_size_is_kept_for_backward() -> None:
    shard = VocabShard(None, 50, 50)
    teacher = torch.randn(3, 50)
    for alpha in ALPHAS:
        assert large_saved_tensors(lambda x, a=alpha: vocab_parallel_divergence(x, teacher, a, shard)) == 1
        assert (
            large_saved_tensors(lambda x, a=alpha: vocab_parallel_topk_divergence(x, teacher, a, 4, shard))
            == 1
        )


def test_nothing_is_kept_without_gradient() -> None:
    with torch.no_grad():
        student, teacher = logits_pair()
        assert not vocab_parallel_divergence(student, teacher, 0.5, whole(student)).requires_grad


def replicas_with_and_without_tokens(rank: int, world: int, tokens: list[int]) -> dict[str, np.ndarray]:
    """Two data-parallel replicas of two vocabulary shards; the loss is summed over all four ranks."""
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    replica = rank // 2
    shard = VocabShard(groups[replica], 9, 10)
    generator = torch.Generator().manual_seed(5)
    weight_VH = torch.randn(10, 4, generator=generator)[shard.start : shard.stop].clone().requires_grad_()
    hidden = torch.randn(2, 6, 4, generator=generator)[replica, : tokens[replica]].clone().requires_grad_()
    student = vocab_parallel_logits(hidden, weight_VH, shard)
    teacher = student.detach() * 0.5
    full = vocab_parallel_divergence(student, teacher, 0.5, shard)
    top = vocab_parallel_topk_divergence(student, teacher, 0.5, 3, shard)
    (full.sum() + top.sum()).backward()
    assert weight_VH.grad is not None and hidden.grad is not None
    total = torch.stack([full.detach().sum(), top.detach().sum()])
    dist.all_reduce(total)
    return {"total": total.numpy(), "weight": weight_VH.grad.numpy(), "hidden": hidden.grad.numpy()}


def test_a_replica_without_routed_tokens_stays_in_step() -> None:
    """Replica 0 alone, then beside one without tokens: the same sums, and zero gradient on the empty one."""
    for tokens in ([4, 0], [0, 4], [0, 0]):
        results = run_ranks(4, replicas_with_and_without_tokens, tokens)
        for rank, result in enumerate(results):
            count = tokens[rank // 2]
            assert result["hidden"].shape == (count, 4)
            assert bool(result["weight"].any()) == (count > 0)
            # The world's total counts each replica twice (two ranks) and is the same everywhere.
            np.testing.assert_array_equal(result["total"], results[0]["total"])
        assert bool(results[0]["total"].all()) == (tokens != [0, 0])


def test_sampled_token_form_and_its_gradient() -> None:
    student = torch.tensor([-1.0, -2.0, -0.5], requires_grad=True)
    teacher = torch.tensor([-1.5, -0.5, -0.5], requires_grad=True)
    loss = sampled_token_divergence(student, teacher)
    torch.testing.assert_close(loss, torch.tensor([-0.5, 3.0, 0.0]))
    loss.sum().backward()
    torch.testing.assert_close(student.grad, torch.tensor([0.5, -1.5, 0.0]))
    assert teacher.grad is None


def test_sampled_token_gradient_is_reverse_kl_in_expectation() -> None:
    student, teacher = logits_pair(1, 6)
    student.requires_grad_()
    reverse_kl = vocab_parallel_divergence(student, teacher, 1.0, whole(student))
    (wanted,) = torch.autograd.grad(reverse_kl.sum(), student)
    log_s, log_t = student.log_softmax(dim=-1)[0], teacher.log_softmax(dim=-1)[0]
    expectation = (log_s.exp().detach() * sampled_token_divergence(log_s, log_t)).sum()
    (gradient,) = torch.autograd.grad(expectation, student)
    torch.testing.assert_close(gradient, wanted, rtol=1e-12, atol=1e-13)  # float64 rounding


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_outside_the_unit_interval_is_refused(alpha: float) -> None:
    student, teacher = logits_pair()
    with pytest.raises(ConfigError, match=f"alpha {alpha}"):
        vocab_parallel_divergence(student, teacher, alpha, whole(student))
    with pytest.raises(ConfigError, match=f"alpha {alpha}"):
        vocab_parallel_topk_divergence(student, teacher, alpha, 2, whole(student))


def test_k_above_the_vocabulary_is_refused() -> None:
    student, teacher = logits_pair()
    with pytest.raises(ConfigError, match="k 13 with a vocabulary of 12"):
        vocab_parallel_topk_divergence(student, teacher, 0.5, 13, whole(student))


def test_sides_of_different_shape_are_refused() -> None:
    student, teacher = logits_pair()
    with pytest.raises(ValueError, match="differ in shape"):
        vocab_parallel_divergence(student, teacher[:2], 0.5, whole(student))
    with pytest.raises(ValueError, match="padding included"):
        vocab_parallel_divergence(student, teacher[:, :5], 0.5, whole(student))
