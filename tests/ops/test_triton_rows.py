"""The Triton kernels in Triton's interpreter, against PyTorch in float64 and the dense definitions."""

import math
import mmap
import re
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megatron_srpo.ops.rows import Normaliser, Rows, Slopes, TorchRows
from tests.ops import harness, reference
from tests.ops.harness import ALPHAS, EDGES, Case, assert_matches, cases, make_inputs
from tests.ops.interpreter import WorkerFailure, run_compiling, run_interpreted
from tests.ops.row_cases import Results, dense_operations, every_operation, normaliser

INF = float("inf")
#: Several blocks of 2048 columns with a part of one, exactly one block, and one column more.
WIDE = [
    Case(tokens=3, vocab_size=5003, alpha=alpha, padding=5, scale=scale)
    for alpha in (0.0, 0.3, 1.0)
    for scale in (1.0, 20.0)
] + [Case(tokens=2, vocab_size=width, alpha=0.7) for width in (2047, 2048, 2049)]


# --- what runs in the worker -----------------------------------------------------------------------------


def triton_rows() -> Rows:
    """Only where Triton can be imported."""
    from megatron_srpo.ops.triton_rows import TritonRows

    return TritonRows()


def all_on_triton(case: Case) -> Results:
    x = make_inputs(case)
    return every_operation(triton_rows(), x.student_TV, x.teacher_TV, case.alpha, case.padding)


def sums_on_triton(logits_TV: Tensor, gap: bool) -> tuple[Tensor, ...]:
    return tuple(triton_rows().sums(logits_TV, gap))


def divergence_on_triton(student_TV: Tensor, teacher_TV: Tensor, alpha: float) -> tuple[Tensor, ...]:
    """(divergence, its gradient with respect to the student's logits), per token."""
    return divergence_and_gradient(triton_rows(), student_TV, teacher_TV, alpha)


def divergence_and_gradient(
    rows: Rows, student_TV: Tensor, teacher_TV: Tensor, alpha: float
) -> tuple[Tensor, ...]:
    student_TV, teacher_TV = student_TV.clone(), teacher_TV.clone()
    student, teacher = (normaliser(rows.sums(item, False)) for item in (student_TV, teacher_TV))
    loss_T, total_T = rows.divergence_(student_TV, teacher_TV, student, teacher, alpha)
    slopes = Slopes(-total_T, None, torch.ones_like(total_T))
    return loss_T, rows.gradient_(student_TV, teacher_TV, student, slopes)


def divergence(student_TV: Tensor, teacher_TV: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """`divergence_on_triton` in its worker, in float64."""
    loss_T, gradient_TV = run_interpreted(divergence_on_triton, student_TV, teacher_TV, alpha)
    assert loss_T.dtype == gradient_TV.dtype == torch.float32
    return loss_T.double(), gradient_TV.double()


def logits_pair(tokens: int, width: int, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens + width)
    student_TV, teacher_TV = scale * torch.randn(2, tokens, width, generator=generator)
    return student_TV, teacher_TV


# --- against PyTorch and the definitions -----------------------------------------------------------------


def check(case: Case) -> None:
    """Compare every operation; the tolerance is `assert_matches`'s, for fp32."""
    case = replace(case, dtype="float32")
    x = make_inputs(case)
    actual = run_interpreted(all_on_triton, case)
    exact = every_operation(
        TorchRows(), x.student_TV.double(), x.teacher_TV.double(), case.alpha, case.padding
    )
    assert actual.keys() == exact.keys()
    for name, value in actual.items():
        assert value.dtype == np.float32, name
        assert_matches(name, value, exact[name], case)
    for name, expected in dense_operations(x.student_TV, x.teacher_TV, case.alpha).items():
        assert_matches(name, actual[name], expected, case)


@pytest.mark.parametrize("case", EDGES + WIDE)
def test_matches_in_edge_cases_and_over_several_blocks(case: Case) -> None:
    check(case)


@given(cases())
@settings(max_examples=40)
def test_matches_over_drawn_cases(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_every_form_matches(alpha: float) -> None:
    check(Case(tokens=4, vocab_size=301, alpha=alpha, padding=3, scale=5.0))


@given(st.integers(1, 70), st.integers(0, 2**20))
@settings(max_examples=15)
def test_the_maximum_is_exact_and_its_place_does_not_matter(width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_TV = torch.randn(2, width, generator=generator) * 10
    order = torch.randperm(width, generator=generator)
    max_T, sum_T, gap_T = run_interpreted(sums_on_triton, logits_TV, True)
    others = run_interpreted(sums_on_triton, logits_TV[:, order].contiguous(), True)
    assert torch.equal(max_T, logits_TV.amax(dim=1)) and torch.equal(max_T, others[0])
    # The same terms summed in another order: fp32 rounding of sums of non-negative terms.
    torch.testing.assert_close(others[1], sum_T, rtol=1e-6, atol=0)
    torch.testing.assert_close(others[2], gap_T, rtol=3e-6, atol=1e-6)


def test_rising_and_falling_rows() -> None:
    """The running maximum changes at every block, or never again after the first."""
    steps_V = torch.arange(6000) / 300
    logits_TV = torch.stack([steps_V, steps_V.flip(0)])
    actual = run_interpreted(sums_on_triton, logits_TV, True)
    for value, expected in zip(actual, TorchRows().sums(logits_TV.double(), True), strict=True):
        torch.testing.assert_close(value.double(), expected, rtol=3e-6, atol=0)  # exp of up to -20


def test_the_gap_is_summed_only_on_request() -> None:
    logits_TV, _ = logits_pair(2, 9)
    without, with_gap = (run_interpreted(sums_on_triton, logits_TV, gap) for gap in (False, True))
    assert without[2] is None and with_gap[2] is not None
    assert torch.equal(without[1], with_gap[1])


def fused_on_triton(operation: str, batch: list[Case]) -> int:
    """Compare a fused operation with its dense reference; return how often these kernels were chosen."""
    from megatron_srpo.ops import fused_linear

    with mock.patch.object(fused_linear, "rows_for", side_effect=lambda _: triton_rows()) as chosen:
        harness.check(operation, 1, batch)
    return chosen.call_count


@pytest.mark.parametrize("operation", ["fused_divergence", "fused_log_prob", "fused_loss"])
def test_fused_operations_match_on_these_kernels(operation: str) -> None:
    alphas = (0.0, 0.3, 0.8, 1.0)
    batch = [
        replace(case, alpha=alphas[place % 4], dtype="float32")
        for place, case in enumerate([*EDGES, *EDGES[3:]])
    ]
    assert run_interpreted(fused_on_triton, operation, batch) >= len(batch)


# --- elementary functions --------------------------------------------------------------------------------


def apply_on_triton(name: str, values: Tensor) -> Tensor:
    from tests.ops.triton_probe import apply

    return apply(name, values)


def relative_error(name: str, x: Tensor) -> Tensor:
    actual = run_interpreted(apply_on_triton, name, x).double()
    expected = getattr(torch, name)(x.double())
    return ((actual - expected) / expected).abs()


def test_expm1_is_relatively_exact() -> None:
    """All sizes down to where x^2 / 2 is lost, both signs, and densely where the reduction changes n."""
    sizes = torch.logspace(-12, math.log10(40), 20_000)
    dense = torch.linspace(-3, 3, 20_001)
    x = torch.cat([-sizes, sizes, dense[dense != 0]])
    # Two roundings of x - n ln 2, a few of the series; 2^n (exp(r) - 1) + (2^n - 1) cancels by up to 2.
    assert relative_error("expm1", x).max() < 4e-7
    assert relative_error("expm1", x[x.abs() < 0.3]).max() < 2e-7


def test_expm1_at_its_ends() -> None:
    x = torch.tensor([0.0, -0.0, -40.0, -1e4, -INF])
    assert run_interpreted(apply_on_triton, "expm1", x).tolist() == [0.0, 0.0, -1.0, -1.0, -1.0]


def test_log1p_is_relatively_exact() -> None:
    sizes = torch.logspace(-12, 17, 20_000)
    x = torch.cat([-sizes[sizes <= 0.5], sizes, torch.linspace(0.9, 1.1, 5001), torch.tensor([-0.5])])
    # A rounding each of 2 + y, of the quotient and of the series and its sum.
    assert relative_error("log1p", x).max() < 4e-7
    assert run_interpreted(apply_on_triton, "log1p", torch.zeros(1)).tolist() == [0.0]


# --- numerics of the divergence --------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", ALPHAS)
def test_equal_rows_have_no_divergence_and_no_slope(alpha: float) -> None:
    logits_TV, _ = logits_pair(3, 100, scale=10)
    loss_T, gradient_TV = divergence(logits_TV, logits_TV, alpha)
    assert not loss_T.any() and not gradient_TV.any()


@pytest.mark.parametrize("alpha", ALPHAS)
def test_small_divergences_keep_their_digits(alpha: float) -> None:
    generator = torch.Generator().manual_seed(0)
    student = 3 * torch.randn(8, 500, generator=generator)
    teacher = student + 1e-3 * torch.randn(8, 500, generator=generator)
    expected = reference.divergence(student.double(), teacher.double(), alpha)
    assert expected.min() > 1e-10 and expected.max() < 2e-6
    # A log-ratio of 1e-3 between logits of size 10 is known to 6e-7 / 1e-3.
    torch.testing.assert_close(divergence(student, teacher, alpha)[0], expected, rtol=2e-3, atol=1e-10)


@pytest.mark.parametrize("alpha", [1e-9, 1e-6, 1e-3, 1 - 1e-3, 1 - 1e-6])
def test_alphas_near_the_ends_are_not_rounded_away(alpha: float) -> None:
    student, teacher = logits_pair(6, 40, scale=20)
    expected = reference.divergence(student.double(), teacher.double(), alpha)
    # Logits of size 60 are rounded at 60 x 6e-8 = 4e-6, and their differences enter the result directly.
    torch.testing.assert_close(divergence(student, teacher, alpha)[0], expected, rtol=2e-5, atol=0)


EXTREME = torch.tensor(
    [[1e4, -1e4, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0], [-1e4, 1e4, 1e4, -1e4], [5.0, -90.0, 90.0, 0.0]]
)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_extreme_logits_give_finite_exact_results(alpha: float) -> None:
    pairs = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    student, teacher = EXTREME[pairs[:, 0]], EXTREME[pairs[:, 1]]
    exact = student.double().requires_grad_()
    expected = reference.divergence(exact, teacher.double(), alpha)
    (wanted,) = torch.autograd.grad(expected.sum(), exact)
    loss_T, gradient_TV = divergence(student, teacher, alpha)
    assert torch.isfinite(loss_T).all() and torch.isfinite(gradient_TV).all()
    # fp32 relative; absolutely 1e-5 of results between 0 and 2e4.
    torch.testing.assert_close(loss_T, expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient_TV, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_impossible_entries_count_as_zero(alpha: float) -> None:
    """Columns impossible on both sides change nothing, not even where a block begins with them."""
    student, teacher = logits_pair(2, 5)
    gone = torch.full((2, 2), -INF)
    wide = [torch.cat([gone, item, gone], dim=1) for item in (student, teacher)]
    loss_T, gradient_TV = divergence(wide[0], wide[1], alpha)
    expected_T, expected_TV = divergence(student, teacher, alpha)
    torch.testing.assert_close(loss_T, expected_T, rtol=1e-6, atol=1e-7)  # summed in another order
    torch.testing.assert_close(gradient_TV[:, 2:-2], expected_TV, rtol=1e-6, atol=1e-7)
    assert not gradient_TV[:, :2].any() and not gradient_TV[:, -2:].any()


def test_entries_impossible_on_one_side() -> None:
    student, teacher = torch.tensor([[0.0, -INF, 1.0]]), torch.tensor([[-INF, 0.0, 1.0]])
    for alpha in (0.0, 1.0):
        assert divergence(student, teacher, alpha)[0].tolist() == [INF]
    for alpha in (0.01, 0.5, 0.9):
        expected = divergence_and_gradient(TorchRows(), student.double(), teacher.double(), alpha)
        for value, wanted in zip(divergence(student, teacher, alpha), expected, strict=True):
            torch.testing.assert_close(value, wanted, rtol=1e-6, atol=1e-7)  # fp32 rounding
    apart = divergence(torch.tensor([[0.0, -INF]]), torch.tensor([[-INF, 0.0]]), 0.5)[0]
    # log m/t = log(exp(40) / 2) - 40, both rounded at 2e-6.
    torch.testing.assert_close(apart, torch.tensor([math.log(2)]).double(), rtol=0, atol=4e-6)


# --- rows without a distribution -------------------------------------------------------------------------


def empty_operations(tokens: int, width: int) -> dict[str, Any]:
    rows, logits_TV, zeros_T = triton_rows(), torch.zeros(tokens, width), torch.zeros(tokens)
    none = Normaliser(zeros_T, zeros_T)
    return {
        "sums": tuple(rows.sums(logits_TV, True)),
        "divergence": rows.divergence_(logits_TV, logits_TV.clone(), none, none, 0.5),
        "gradient": rows.gradient_(logits_TV, logits_TV.clone(), none, Slopes(zeros_T, zeros_T, zeros_T)),
    }


@pytest.mark.parametrize(("tokens", "width"), [(0, 5), (3, 0), (0, 0)])
def test_no_rows_or_no_columns(tokens: int, width: int) -> None:
    results = run_interpreted(empty_operations, tokens, width)
    zeros = [0.0] * tokens
    assert [value.tolist() for value in results["sums"]] == [[-INF] * tokens, zeros, zeros]
    assert [value.tolist() for value in results["divergence"]] == [zeros, zeros]
    assert results["gradient"].shape == (tokens, width)


def test_a_shard_without_a_possible_entry_is_like_one_without_columns() -> None:
    results = run_interpreted(sums_on_triton, torch.full((2, 40), -INF), True)
    assert [value.tolist() for value in results] == [[-INF, -INF], [0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("wrong", [float("nan"), INF])
@pytest.mark.parametrize("place", [0, 33, 2500])
def test_logits_that_are_no_numbers_show(wrong: float, place: int) -> None:
    logits_TV, _ = logits_pair(2, 3000)
    logits_TV[1, place] = wrong
    _, sum_T, gap_T = run_interpreted(sums_on_triton, logits_TV, True)
    assert sum_T.isnan().tolist() == gap_T.isnan().tolist() == [False, True]


# --- layouts and types -----------------------------------------------------------------------------------


def rows_far_apart() -> list[list[float]]:
    """Row 2 begins beyond 2^31 entries. The memory is only reserved; pages come into being when written."""
    stride, reserve = 2**30 + 16, 0x4000  # Linux's MAP_NORESERVE
    memory = mmap.mmap(-1, 4 * (2 * stride + 8), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | reserve)
    logits_TV = torch.frombuffer(memory, dtype=torch.float32).as_strided((3, 8), (stride, 1))
    logits_TV.copy_(torch.arange(24.0).view(3, 8))
    rows = triton_rows()
    sums = rows.sums(logits_TV, False)
    rows.divergence_(logits_TV, logits_TV.clone(), normaliser(sums), normaliser(sums), 0.5)
    slopes = Slopes(torch.full((3,), 2.0), None, None)
    rows.gradient_(logits_TV, torch.zeros(3, 8), normaliser(sums), slopes)
    return logits_TV.tolist()


def test_offsets_of_rows_do_not_wrap_at_32_bits() -> None:
    expected = 2 * torch.arange(8.0).softmax(dim=0).expand(3, 8)  # all rows are equal but for a constant
    torch.testing.assert_close(torch.tensor(run_interpreted(rows_far_apart)), expected, rtol=1e-6, atol=0)


def strided_factors(student_TV: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient with numbers per token that lie apart or are one number for all, and the same laid out."""
    rows, tokens = triton_rows(), len(student_TV)
    whole = normaliser(rows.sums(student_TV, False))
    columns_T3 = torch.arange(3.0 * tokens).view(tokens, 3)
    apart = Slopes(columns_T3[:, 1], torch.tensor(0.5).expand(tokens), None)
    together = Slopes(columns_T3[:, 1].clone(), torch.full((tokens,), 0.5), None)
    first, second = (rows.gradient_(student_TV.clone(), None, whole, slopes) for slopes in (apart, together))
    return first, second


def test_numbers_per_token_may_lie_apart() -> None:
    apart, together = run_interpreted(strided_factors, logits_pair(4, 10)[0])
    assert torch.equal(apart, together) and together.any()


def test_float64_is_computed_by_pytorch() -> None:
    student, teacher = (item.double() for item in logits_pair(3, 7))
    actual = run_interpreted(divergence_on_triton, student, teacher, 0.3)
    expected = divergence_and_gradient(TorchRows(), student, teacher, 0.3)
    for value, wanted in zip(actual, expected, strict=True):
        assert value.dtype == torch.float64
        # float64 rounding; another process may use other vector instructions.
        torch.testing.assert_close(value, wanted, rtol=1e-13, atol=1e-15)


def test_other_types_are_refused() -> None:
    with pytest.raises(WorkerFailure, match=re.escape("ValueError: logits of type torch.bfloat16")):
        run_interpreted(sums_on_triton, torch.zeros(2, 5, dtype=torch.bfloat16), False)


def transposed_sums() -> None:
    triton_rows().sums(torch.zeros(5, 2).t(), False)


def test_columns_that_lie_apart_are_refused() -> None:
    with pytest.raises(WorkerFailure, match=re.escape("ValueError: logits of strides (1, 2)")):
        run_interpreted(transposed_sums)


def unequal_divergence() -> None:
    zeros_T = torch.zeros(2)
    none = Normaliser(zeros_T, zeros_T)
    triton_rows().divergence_(torch.zeros(2, 5), torch.zeros(2, 4), none, none, 0.5)


def test_sides_of_different_shape_are_refused() -> None:
    with pytest.raises(WorkerFailure, match=re.escape("ValueError: student (2, 5) and teacher (2, 4)")):
        run_interpreted(unequal_divergence)


# --- the compiler ----------------------------------------------------------------------------------------

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("sums_kernel", {"gap_out": None}),
    ("sums_kernel", {}),
    ("divergence_kernel", {"FORM": 0, "SWAP": False}),
    ("divergence_kernel", {"FORM": 1, "SWAP": True}),
    ("divergence_kernel", {"FORM": 2, "SWAP": False}),
    ("divergence_kernel", {"FORM": 2, "SWAP": True}),
    ("gradient_kernel", {"slope": None, "entropy_factor": None, "slope_factor": None, "LOGITS": True}),
    ("gradient_kernel", {"slope": None, "slope_factor": None, "LOGITS": True}),
    ("gradient_kernel", {"entropy_factor": None, "LOGITS": False}),
    ("gradient_kernel", {"LOGITS": False}),
]


def compile_variant(name: str, constants: dict[str, Any], width: int, capability: int) -> tuple[str, int]:
    """Compile down to machine code; return PTX and the size of the code. Rows of sizes divisible by 16."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from megatron_srpo.ops import triton_kernels
    from megatron_srpo.ops.triton_rows import _launch

    launch = _launch(width)
    constants = {**constants, "BLOCK": launch["BLOCK"]}
    kernel = getattr(triton_kernels, name)
    types = {"width": "i32", "s_weight": "fp32", "t_weight": "fp32"}
    types |= {argument: "i64" for argument in kernel.arg_names if argument.endswith("stride")}
    signature = {
        argument: "constexpr" if argument in constants else types.get(argument, "*fp32")
        for argument in kernel.arg_names
    }
    divisible = [place for place, kind in enumerate(signature.values()) if kind not in ("constexpr", "fp32")]
    attributes = {(place,): [["tt.divisibility", 16]] for place in divisible}
    compiled = triton.compile(
        ASTSource(kernel, signature, constants, attributes),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": launch["num_warps"]},
    )
    return compiled.asm["ptx"], len(compiled.asm["cubin"])


@pytest.mark.parametrize(("name", "constants"), VARIANTS)
def test_compiles_for_hopper_with_wide_loads_and_stores(name: str, constants: dict[str, Any]) -> None:
    """The interpreter accepts more than the compiler does, and does not care how memory is read."""
    ptx, size = run_compiling(compile_variant, name, constants, 151936, 90)
    assert size > 0 and "sm_90" in ptx
    rows = {"sums_kernel": 1, "divergence_kernel": 2}.get(name, 1 if "slope" in constants else 2)
    assert len(re.findall(r"ld\.global\S*\.v4", ptx)) == 2 * rows  # eight columns a thread, 16 bytes a load
    stored = {"sums_kernel": 0, "divergence_kernel": 2}.get(name, 1)
    assert len(re.findall(r"st\.global\S*\.v4", ptx)) == 2 * stored


@pytest.mark.parametrize("capability", [80, 89, 100, 120])
def test_compiles_for_other_devices(capability: int) -> None:
    _, size = run_compiling(compile_variant, "divergence_kernel", {"FORM": 2, "SWAP": False}, 300, capability)
    assert size > 0
