"""Losses from hidden states: exactness, chunks, layouts, stability, memory and errors."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_srpo.errors import ConfigError
from megatron_srpo.ops import (
    Divergence,
    LinearHead,
    TeacherSide,
    TokenTerms,
    VocabShard,
    fused_linear_divergence,
    fused_linear_log_prob,
    fused_linear_loss,
)
from megatron_srpo.ops.shard import math_dtype
from tests.ops import reference
from tests.ops.harness import ALPHAS, EDGES, Case, cases, check
from tests.ranks import run_ranks

OPERATIONS = ["fused_divergence", "fused_topk_divergence", "fused_log_prob", "fused_loss"]
EDGES_OF_ALL_FORMS = [replace(case, alpha=alpha) for case in EDGES for alpha in (0.0, 0.5, 1.0)]


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("world", [1, 2, 4])
def test_matches_the_dense_reference_in_edge_cases(operation: str, world: int) -> None:
    check(operation, world, EDGES_OF_ALL_FORMS)


@pytest.mark.parametrize("operation", OPERATIONS)
@given(cases())
@settings(deadline=None, max_examples=60)
def test_matches_the_dense_reference(operation: str, case: Case) -> None:
    check(operation, 1, [case])


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("world", [2, 4])
@given(st.lists(cases(), min_size=4, max_size=12))
@settings(deadline=None, max_examples=3)
def test_sharded_matches_the_dense_reference(operation: str, world: int, batch: list[Case]) -> None:
    check(operation, world, batch)


# --- sizes of one process --------------------------------------------------------------------------------


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def make_head(vocab_size: int = 9, padded: int = 11, hidden: int = 4, **options: Any) -> LinearHead:
    dtype = options.pop("dtype", torch.float64)
    weight_VH = numbers(padded, hidden, seed=options.pop("seed", 1), dtype=dtype)
    weight_VH[vocab_size:] = float("nan")  # padding that is read would show
    return LinearHead(weight_VH.requires_grad_(), VocabShard(None, vocab_size, padded), **options)


def make_teacher(tokens: int, divergence: Divergence, head: LinearHead, width: int = 3) -> TeacherSide:
    """A teacher of another hidden size."""
    weight_VK = numbers(head.shard.padded_size, width, seed=3, dtype=head.weight_VH.dtype)
    theirs = LinearHead(weight_VK, head.shard, head.temperature)
    return TeacherSide(numbers(tokens, width, seed=4, dtype=head.weight_VH.dtype), theirs, divergence)


FORMS = [Divergence(alpha) for alpha in ALPHAS] + [Divergence(0.3, 4), Divergence(0.3, 4, tail=False)]


class Repeatable(torch.autograd.Function):
    """Takes the gradient once and keeps it: gradcheck asks for it several times."""

    @staticmethod
    def forward(ctx: Any, loss: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        with torch.enable_grad():
            leaves = [tensor.detach().requires_grad_() for tensor in inputs]
            value = loss(*leaves)
        ctx.save_for_backward(*torch.autograd.grad(value, leaves))
        return value.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *(tensor * grad for tensor in ctx.saved_tensors))


@pytest.mark.parametrize("form", FORMS)
def test_gradcheck_of_the_divergence(form: Divergence) -> None:
    """By finite differences, in float64, through chunks of all kinds."""
    head, weights_T = make_head(temperature=0.7), torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64)
    teacher = make_teacher(3, form, head)

    def loss(hidden_TH: Tensor, weight_9H: Tensor) -> Tensor:
        whole_VH = torch.nn.functional.pad(weight_9H, (0, 0, 0, 2))
        ours = LinearHead(whole_VH, head.shard, head.temperature)
        return fused_linear_divergence(hidden_TH, ours, teacher, weights_T=weights_T, chunk=2)[0]

    weight_9H = head.weight_VH[:9].detach().requires_grad_()
    inputs = (numbers(3, 4).requires_grad_(), weight_9H)
    assert torch.autograd.gradcheck(lambda *leaves: Repeatable.apply(loss, *leaves), inputs)


def test_gradcheck_of_log_prob_entropy_and_normaliser() -> None:
    head, target_T = make_head(temperature=1.3), torch.tensor([0, 8, 3])

    def scores(hidden_TH: Tensor, weight_9H: Tensor) -> tuple[Tensor, ...]:
        whole_VH = torch.nn.functional.pad(weight_9H, (0, 0, 0, 2))
        ours = LinearHead(whole_VH, head.shard, head.temperature)
        found = fused_linear_log_prob(hidden_TH, ours, target_T, entropy=True, chunk=2)
        return found.log_prob_T, found.entropy_T, found.log_normaliser_T  # type: ignore[return-value]

    weight_9H = head.weight_VH[:9].detach().requires_grad_()
    assert torch.autograd.gradcheck(scores, (numbers(3, 4).requires_grad_(), weight_9H))


@pytest.mark.parametrize("top_k", [None, 4])
def test_chunks_do_not_change_the_result(top_k: int | None) -> None:
    """float64: the order of sums over chunks rounds at 1e-16."""
    results = []
    for chunk in (1, 2, 3, 5, 100, None):
        head = make_head()
        hidden_TH = numbers(5, 4).requires_grad_()
        teacher = make_teacher(5, Divergence(0.5, top_k), head)
        loss, divergence_T = fused_linear_divergence(hidden_TH, head, teacher, chunk=chunk)
        loss.backward()
        results.append((loss.detach(), divergence_T, hidden_TH.grad, head.weight_VH.grad[:9]))  # type: ignore[index]
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-12, atol=1e-14)


def test_bf16_is_within_two_percent_of_dense_float64() -> None:
    """bf16 keeps 8 bits: inputs are exact, logits and the factors of the products are rounded by 0.4 %."""
    head = make_head(40, 48, 16, dtype=torch.bfloat16, temperature=0.8)
    hidden_TH = numbers(12, 16, dtype=torch.bfloat16).requires_grad_()
    teacher = make_teacher(12, Divergence(0.5), head, width=16)
    loss, divergence_T = fused_linear_divergence(hidden_TH, head, teacher, chunk=5)
    loss.backward()
    hidden, weight = hidden_TH.detach().double(), head.weight_VH[:40].detach().double()
    hidden.requires_grad_(), weight.requires_grad_()
    theirs = teacher.hidden_DK.double() @ teacher.head.weight_VH[:40].double().t() / 0.8
    expected_T = reference.divergence(hidden @ weight.t() / 0.8, theirs, 0.5)
    expected_T.sum().backward()
    pairs = [
        (divergence_T, expected_T),
        (hidden_TH.grad, hidden.grad),
        (head.weight_VH.grad[:40], weight.grad),
    ]  # type: ignore[index]
    for found, expected in pairs:
        assert found is not None and expected is not None
        error = (found.double() - expected).norm() / expected.norm()
        assert error < 2e-2
    assert hidden_TH.grad is not None and hidden_TH.grad.dtype == torch.bfloat16
    assert head.weight_VH.grad is not None and head.weight_VH.grad.dtype == torch.bfloat16


def test_fp32_products_of_bf16_tensors_are_exact_to_fp32() -> None:
    head = make_head(40, 40, 16, dtype=torch.bfloat16, fp32_gemm=True)
    hidden_TH = numbers(6, 16, dtype=torch.bfloat16)
    found = fused_linear_log_prob(hidden_TH, head, torch.arange(6))
    expected_T = reference.log_prob(
        hidden_TH.double() @ head.weight_VH.detach().double().t(), torch.arange(6)
    )
    torch.testing.assert_close(found.log_prob_T.double(), expected_T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_extreme_logits_stay_finite(form: Divergence, scale: float) -> None:
    """Forward KL grows with the logits; nothing becomes infinite or undefined."""
    head = make_head(dtype=torch.float32)
    with torch.no_grad():
        head.weight_VH[:9] = numbers(9, 4, seed=8, dtype=torch.float32).sign() * scale / 4
    hidden_TH = numbers(5, 4, dtype=torch.float32).sign().requires_grad_()
    teacher = make_teacher(5, form, head, width=4)
    big = TeacherSide(teacher.hidden_DK.sign(), LinearHead(-head.weight_VH.detach(), head.shard), form)
    loss, divergence_T = fused_linear_divergence(hidden_TH, head, big, chunk=2)
    scores = fused_linear_log_prob(hidden_TH, head, torch.arange(5), entropy=True, chunk=2)
    (loss + scores.log_prob_T.sum() + scores.entropy_T.sum()).backward()  # type: ignore[union-attr]
    assert divergence_T.isfinite().all() and (divergence_T > -1e-6).all()
    assert hidden_TH.grad is not None and hidden_TH.grad.isfinite().all()
    assert head.weight_VH.grad is not None and head.weight_VH.grad[:9].isfinite().all()
    assert not head.weight_VH.grad[9:].any()


def test_ignored_tokens_may_be_left_out() -> None:
    """Weight 0 and absence are the same in value and gradient."""
    kept, weights_T = torch.tensor([0, 3, 4]), torch.tensor([1.0, 0, 0, 0.5, 2.0], dtype=torch.float64)
    head, whole = make_head(), numbers(5, 4).requires_grad_()
    teacher = make_teacher(5, Divergence(0.5), head)
    fused_linear_divergence(whole, head, teacher, weights_T=weights_T, chunk=2)[0].backward()
    other, part = make_head(), whole.detach().clone().requires_grad_()
    fewer = TeacherSide(teacher.hidden_DK[kept], teacher.head, teacher.divergence)
    loss, _ = fused_linear_divergence(part[kept], other, fewer, weights_T=weights_T[kept], chunk=2)
    loss.backward()
    torch.testing.assert_close(part.grad, whole.grad, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(other.weight_VH.grad, head.weight_VH.grad, rtol=1e-12, atol=1e-14)


def test_no_tokens_give_zero_and_zero_gradients() -> None:
    head, hidden_TH = make_head(), torch.zeros(0, 4, dtype=torch.float64, requires_grad=True)
    loss, divergence_T = fused_linear_divergence(hidden_TH, head, make_teacher(0, Divergence(0.5), head))
    loss.backward()
    assert loss == 0 and divergence_T.shape == (0,)
    assert hidden_TH.grad is not None and hidden_TH.grad.shape == (0, 4)
    assert head.weight_VH.grad is not None and not head.weight_VH.grad.any()


def test_a_loss_may_ignore_terms_or_tokens() -> None:
    head, hidden_TH = make_head(), numbers(4, 4).requires_grad_()
    teacher = make_teacher(2, Divergence(0.5), head)

    def only_first(rows: slice, terms: TokenTerms) -> Tensor:
        if rows.start > 0:
            return torch.zeros((), dtype=torch.float64)
        assert terms.log_prob_T is not None and terms.entropy_T is None
        return terms.log_prob_T.sum()

    options: dict[str, Any] = {"target_T": torch.arange(4), "teacher": teacher, "chunk": 1}
    fused_linear_loss(hidden_TH, head, only_first, **options).backward()
    alone = hidden_TH.detach()[:1].requires_grad_()
    fused_linear_log_prob(alone, head, torch.arange(1)).log_prob_T.sum().backward()
    assert hidden_TH.grad is not None and alone.grad is not None
    torch.testing.assert_close(hidden_TH.grad[:1], alone.grad)
    assert not hidden_TH.grad[1:].any()


def test_only_what_is_wanted_is_formed() -> None:
    """A frozen head, frozen hidden states, and no gradient at all give the same loss."""
    losses = []
    for hidden_grad, head_grad in ((True, True), (False, True), (True, False), (False, False)):
        head, hidden_TH = make_head(), numbers(3, 4).requires_grad_(hidden_grad)
        head.weight_VH.requires_grad_(head_grad)
        loss, _ = fused_linear_divergence(hidden_TH, head, make_teacher(3, Divergence(0.5), head))
        if hidden_grad or head_grad:
            loss.backward()
        assert (hidden_TH.grad is not None) == hidden_grad
        assert (head.weight_VH.grad is not None) == head_grad
        losses.append(float(loss.detach()))
    assert len(set(losses)) == 1


def test_a_gradient_can_be_taken_once() -> None:
    head, hidden_TH = make_head(), numbers(3, 4).requires_grad_()
    loss, _ = fused_linear_divergence(hidden_TH, head, make_teacher(3, Divergence(0.5), head))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="can be taken once"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_head_gradient_goes_into_its_accumulator(dtype: torch.dtype) -> None:
    """Two micro-batches on top of what is there already; autograd sees zeros. Nothing is rounded to bf16."""
    plain, math_type = make_head(dtype=dtype), math_dtype(numbers(1, dtype=dtype))
    start_VH = numbers(11, 4, seed=7, dtype=math_type)
    main_grad_VH, expected_VH = start_VH.clone(), start_VH.double().clone()
    head = replace(plain, main_grad_VH=main_grad_VH)
    for seed in (5, 6):
        hidden_TH = numbers(6, 4, seed=seed, dtype=dtype).requires_grad_()
        loss, _ = fused_linear_divergence(hidden_TH, head, make_teacher(6, Divergence(0.5), head), chunk=4)
        loss.backward()
        wide = replace(plain, weight_VH=plain.weight_VH.detach().to(math_type).requires_grad_())
        same_TH = hidden_TH.detach().to(math_type)
        teacher = make_teacher(6, Divergence(0.5), plain)
        theirs = replace(teacher.head, weight_VH=teacher.head.weight_VH.to(math_type))
        teacher = TeacherSide(teacher.hidden_DK.to(math_type), theirs, teacher.divergence)
        fused_linear_divergence(same_TH, wide, teacher)[0].backward()
        assert wide.weight_VH.grad is not None
        expected_VH += wide.weight_VH.grad.double()
    assert plain.weight_VH.grad is not None and not plain.weight_VH.grad.any()
    # fp32: rounding. bf16: the gradient of the logits is a factor of the product and is rounded by 0.4 %.
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    difference = (main_grad_VH.double() - expected_VH)[:9].norm() / (expected_VH - start_VH)[:9].norm()
    assert difference < tolerance
    torch.testing.assert_close(main_grad_VH[9:], start_VH[9:], rtol=0, atol=0)


def test_an_accumulator_takes_log_probs_too() -> None:
    plain, hidden_TH = make_head(), numbers(3, 4)
    fused_linear_log_prob(hidden_TH, plain, torch.arange(3)).log_prob_T.sum().backward()
    head = replace(plain, main_grad_VH=torch.zeros(11, 4, dtype=torch.float64))
    expected_VH, plain.weight_VH.grad = plain.weight_VH.grad, None
    fused_linear_log_prob(hidden_TH, head, torch.arange(3)).log_prob_T.sum().backward()
    assert head.main_grad_VH is not None and expected_VH is not None and expected_VH.any()
    torch.testing.assert_close(head.main_grad_VH, expected_VH)


def test_an_accumulator_wants_a_gradient_of_one() -> None:
    head = make_head(main_grad_VH=torch.zeros(11, 4, dtype=torch.float64))
    loss, _ = fused_linear_divergence(numbers(3, 4), head, make_teacher(3, Divergence(0.5), head))
    with pytest.raises(RuntimeError, match="the gradient of a fused loss must be 1"):
        (loss / 2).backward()


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.parametrize("top_k", [None, 4])
def test_no_tensor_of_tokens_times_vocabulary_exists(top_k: int | None) -> None:
    tokens, vocabulary, chunk = 200, 300, 8
    head, hidden_TH = make_head(vocabulary, vocabulary), numbers(tokens, 4).requires_grad_()
    teacher = make_teacher(tokens, Divergence(0.5, top_k), head)
    with Largest() as largest:
        loss, _ = fused_linear_divergence(hidden_TH, head, teacher, chunk=chunk)
        scores = fused_linear_log_prob(hidden_TH, head, torch.zeros(tokens, dtype=torch.long), chunk=chunk)
        (loss + scores.log_prob_T.sum()).backward()
    assert chunk * vocabulary <= largest.elements < 2 * chunk * vocabulary


# --- several ranks ---------------------------------------------------------------------------------------


def sequence_parallel(rank: int, world: int, parallel: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and gradients of 6 tokens, whole on every rank or cut over the ranks."""
    shard = VocabShard(dist.group.WORLD, 9, 10)
    weight_VH = numbers(10, 4, seed=1)[shard.start : shard.stop].clone().requires_grad_()
    head, whole_TH = LinearHead(weight_VH, shard), numbers(6, 4)
    teacher = TeacherSide(numbers(6, 4, seed=2), LinearHead(weight_VH.detach(), shard), Divergence(0.5))
    mine = whole_TH.chunk(world)[rank] if parallel else whole_TH
    hidden_TH = mine.clone().requires_grad_()
    loss, _ = fused_linear_divergence(hidden_TH, head, teacher, sequence_parallel=parallel, chunk=4)
    scores = fused_linear_log_prob(hidden_TH, head, torch.arange(6), sequence_parallel=parallel)
    (loss + scores.log_prob_T.sum()).backward()
    assert hidden_TH.grad is not None and weight_VH.grad is not None
    return loss.detach(), hidden_TH.grad, weight_VH.grad


def test_sequence_parallel_hidden_states() -> None:
    """Each rank holds half of the tokens and gets half of the gradient."""
    whole, parts = run_ranks(2, sequence_parallel, False), run_ranks(2, sequence_parallel, True)
    for (loss, _, weight), (other, _, other_weight) in zip(whole, parts, strict=True):
        torch.testing.assert_close(loss, other)
        torch.testing.assert_close(weight, other_weight)
    torch.testing.assert_close(torch.cat([hidden for _, hidden, _ in parts]), whole[0][1])


# --- errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_a_temperature_that_cannot_divide(temperature: float) -> None:
    with pytest.raises(ConfigError, match=f"temperature {temperature}"):
        make_head(temperature=temperature)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5}, "alpha 1.5"),
        ({"alpha": -0.1}, r"give a number in \[0, 1\]"),
        ({"top_k": 0}, "top_k 0: give at least 1"),
    ],
)
def test_a_divergence_that_does_not_exist(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Divergence(**options)


def test_more_entries_than_the_vocabulary_has() -> None:
    head = make_head()
    with pytest.raises(ConfigError, match="top_k 10 with a vocabulary of 9 entries: give at most 9"):
        fused_linear_divergence(numbers(2, 4), head, make_teacher(2, Divergence(0.5, 10), head))


def test_shapes_that_do_not_fit() -> None:
    head = make_head()
    with pytest.raises(ValueError, match=r"hidden states of shape \(2, 5\) for a head of shape \(11, 4\)"):
        fused_linear_log_prob(numbers(2, 5), head, torch.arange(2))
    with pytest.raises(ValueError, match=r"this shard needs \(11, hidden\)"):
        LinearHead(numbers(10, 4), VocabShard(None, 9, 11))
    with pytest.raises(ValueError, match=r"accumulator of shape \(11, 4\) and type torch.bfloat16 .*float64"):
        make_head(main_grad_VH=torch.zeros(11, 4, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="a teacher of 3 tokens, of 2"):
        fused_linear_divergence(numbers(2, 4), head, make_teacher(3, Divergence(0.5), head))
    other = make_teacher(2, Divergence(0.5), make_head(8))
    with pytest.raises(ValueError, match="must be cut like the student's"):
        fused_linear_divergence(numbers(2, 4), head, other)


def test_a_target_outside_the_vocabulary_gives_nan_and_no_gradient() -> None:
    head, hidden_TH = make_head(), numbers(2, 4).requires_grad_()
    found = fused_linear_log_prob(hidden_TH, head, torch.tensor([9, 1]))
    assert found.log_prob_T[0].isnan() and found.log_prob_T[1].isfinite()
