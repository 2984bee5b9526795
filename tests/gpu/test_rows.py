"""The Triton kernels compiled and run on a CUDA device, at the sizes of real vocabularies.

Their logic is tested on the CPU (`tests/ops/test_triton_rows.py`); here it is the device's own exp and log,
its memory layout and the compiler's work. The reference is PyTorch in float64 on the same device.
"""

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor

from megatron_srpo.ops.rows import Rows, Slopes, TorchRows
from tests.ops import reference
from tests.ops.harness import ALPHAS
from tests.ops.row_cases import every_operation, normaliser

if TYPE_CHECKING:
    from megatron_srpo.ops.triton_rows import TritonRows

pytestmark = pytest.mark.gpu

QWEN3 = 151936
#: (tokens, columns, columns of padding): Qwen3 whole and on 4 ranks, Llama 3, and widths that no load fits.
SHAPES = [(64, QWEN3, 0), (64, QWEN3 // 4, 0), (64, 128256, 128), (5, 50257, 0), (3, 4097, 7), (300, 1, 0)]


@pytest.fixture(scope="module")
def rows() -> "TritonRows":
    """Triton is imported only where these tests run."""
    from megatron_srpo.ops.triton_rows import TritonRows

    return TritonRows()


def logits_pair(tokens: int, width: int, scale: float = 3.0, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator(device="cuda").manual_seed(seed)
    shape = (2, tokens, width)
    return list(scale * torch.randn(shape, generator=generator, device="cuda"))


def check(rows: Rows, student_TV: Tensor, teacher_TV: Tensor, alpha: float, padding: int) -> None:
    """Compare every operation with the same in float64, with the tolerance of the CPU tests.

    1e-5 of the largest entry, and 8 roundings of the largest logit, which every log-probability carries.
    """
    actual = every_operation(rows, student_TV, teacher_TV, alpha, padding)
    exact = every_operation(TorchRows(), student_TV.double(), teacher_TV.double(), alpha, padding)
    largest = max(1.0, student_TV.abs().max().item(), teacher_TV.abs().max().item())
    rounding = float(np.finfo("float32").eps) / 2
    for name, value in actual.items():
        expected = exact[name]
        bound = 1e-5 * np.abs(expected).max() + 8 * rounding * largest
        error = np.abs(value - expected).max()
        assert error <= bound, f"{name}: error {error:.3e} > {bound:.3e}"  # NaN fails as well


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize(("tokens", "width", "padding"), SHAPES)
def test_matches_float64(rows: Rows, tokens: int, width: int, padding: int, alpha: float) -> None:
    student_TV, teacher_TV = logits_pair(tokens, width)
    check(rows, student_TV, teacher_TV, alpha, padding)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_matches_float64_on_logits_of_bfloat16(rows: Rows, scale: float, alpha: float) -> None:
    """Few distinct values: many ties, also for the maximum, and many equal entries of both sides."""
    student_TV, teacher_TV = (item.bfloat16().float() for item in logits_pair(64, QWEN3, scale))
    check(rows, student_TV, teacher_TV, alpha, padding=0)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_a_teacher_near_the_student(rows: Rows, alpha: float) -> None:
    """Self-distillation as it is: the digits of a small divergence survive the device's exp and log."""
    student_TV, noise_TV = logits_pair(64, QWEN3)
    teacher_TV = student_TV + 1e-3 / 3 * noise_TV
    expected_T = reference.divergence(student_TV.double(), teacher_TV.double(), alpha)
    assert expected_T.max() < 2e-6
    student, teacher = (normaliser(rows.sums(item, False)) for item in (student_TV, teacher_TV))
    loss_T, _ = rows.divergence_(student_TV, teacher_TV, student, teacher, alpha)
    # A log-ratio of 1e-3 between logits of size 10 is known to 6e-7 / 1e-3.
    torch.testing.assert_close(loss_T.double(), expected_T, rtol=2e-3, atol=1e-10)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_extreme_logits(rows: Rows, alpha: float) -> None:
    student_TV, teacher_TV = (item.clamp(-1e4, 1e4) for item in logits_pair(16, QWEN3, scale=1e4))
    check(rows, student_TV, teacher_TV, alpha, padding=0)
    same = normaliser(rows.sums(student_TV, False))
    loss_T, _ = rows.divergence_(student_TV, student_TV.clone(), same, same, alpha)
    assert not loss_T.any()


@pytest.mark.parametrize("name", ["expm1", "log1p"])
def test_elementary_functions_are_relatively_exact(name: str) -> None:
    from tests.ops.triton_probe import apply

    sizes = torch.logspace(-12, 1.6, 100_000, device="cuda")
    negative = -sizes if name == "expm1" else -sizes[sizes <= 0.5]
    x = torch.cat([negative, sizes])
    expected = getattr(torch, name)(x.double())
    error = ((apply(name, x) - expected) / expected).abs().max().item()
    # As in the interpreter 4e-7, and the device's own exp2, log and quotient, known to 2^-22 = 2.4e-7; where
    # 2^n (exp(r) - 1) + (2^n - 1) cancels, twice that.
    assert error < 1e-6


def test_more_than_2_to_the_31_logits(rows: Rows) -> None:
    """The last row lies beyond 2^31 entries. 9 GB, of which one row in 1024 is written."""
    stride, width = 2**21, 1000
    memory = torch.empty(1026 * stride, device="cuda")
    whole_TV = memory.as_strided((1026, width), (stride, 1))
    logits_TV, _ = logits_pair(1026, width)
    whole_TV.copy_(logits_TV)
    check_TV = logits_TV.double().softmax(dim=1)
    sums = rows.sums(whole_TV, False)
    ones_T = torch.ones(1026, device="cuda")
    found_TV = rows.gradient_(whole_TV, None, normaliser(sums), Slopes(ones_T, None, None))
    # exp of logits of size 10, each rounded at 6e-7.
    torch.testing.assert_close(found_TV.double(), check_TV, rtol=1e-5, atol=0)


def test_nothing_of_the_size_of_the_logits_is_allocated(rows: Rows) -> None:
    student_TV, teacher_TV = logits_pair(256, QWEN3)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    sums = rows.sums(student_TV, True)
    student, teacher = normaliser(sums), normaliser(rows.sums(teacher_TV, False))
    loss_T, total_T = rows.divergence_(student_TV, teacher_TV, student, teacher, 0.5)
    rows.gradient_(student_TV, teacher_TV, student, Slopes(-total_T, loss_T, torch.ones_like(total_T)))
    # A dozen numbers per token, each in a block of at least 512 bytes, against 608 KB of logits per token.
    assert torch.cuda.max_memory_allocated() - before < 256 * 4 * 64


def test_equal_calls_give_equal_bits(rows: Rows) -> None:
    """Every sum has one order, also when a row is one of more or fewer."""
    student_TV, teacher_TV = logits_pair(40, QWEN3)
    all_of_them = every_operation(rows, student_TV, teacher_TV, 0.3, 0)
    again = every_operation(rows, student_TV, teacher_TV, 0.3, 0)
    some = every_operation(rows, student_TV[:7].clone(), teacher_TV[:7].clone(), 0.3, 0)
    for name, value in all_of_them.items():
        np.testing.assert_array_equal(value, again[name], err_msg=name)
    for name in ("max_T", "sum_T", "gap_T", "loss_T", "slope_sum_T", "prob_TV", "slope_TV"):
        np.testing.assert_array_equal(all_of_them[name][:7], some[name], err_msg=name)


def test_tensors_of_the_cpu_are_refused(rows: Rows) -> None:
    with pytest.raises(ValueError, match="cpu tensor"):
        rows.sums(torch.zeros(2, 5), False)
