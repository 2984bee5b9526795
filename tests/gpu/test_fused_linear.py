"""Fused losses on CUDA, with the kernels that the machine gets, against dense float64 and against the CPU."""

from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_srpo import platform
from megatron_srpo.ops import (
    Divergence,
    LinearHead,
    TeacherSide,
    TokenTerms,
    VocabShard,
    fused_linear_bytes,
    fused_linear_loss,
)
from tests.ops import reference

pytestmark = pytest.mark.gpu

Results = dict[str, Tensor]


def inputs(tokens: int, hidden: int, vocabulary: int, dtype: torch.dtype) -> list[Tensor]:
    """Hidden states and heads of both sides; logits have a standard deviation of 2."""
    generator = torch.Generator().manual_seed(0)

    def draw(rows: int) -> Tensor:
        return torch.randn(rows, hidden, generator=generator) * (2.0**0.5 / hidden**0.25)

    return [draw(count).to(dtype) for count in (tokens, vocabulary, tokens // 2, vocabulary)]


def targets(tokens: int, vocabulary: int) -> Tensor:
    return torch.arange(tokens) * 7919 % vocabulary


def fused(device: str, form: Divergence, sizes: tuple[int, int, int], dtype: torch.dtype) -> Results:
    """Loss and gradients of everything together: half of the tokens has a teacher."""
    hidden_TH, weight_VH, theirs_DH, theirs_VH = (item.to(device) for item in inputs(*sizes, dtype))
    hidden_TH.requires_grad_(), weight_VH.requires_grad_()
    shard = VocabShard(None, sizes[2], sizes[2])

    def token_loss(rows: slice, terms: TokenTerms) -> Tensor:
        assert terms.log_prob_T is not None and terms.entropy_T is not None
        loss = (0.1 * terms.entropy_T - terms.log_prob_T).sum()
        return loss if terms.divergence_T is None else loss + 3 * terms.divergence_T.sum()

    teacher = TeacherSide(theirs_DH, LinearHead(theirs_VH, shard, 0.7), form)
    target_T = targets(sizes[0], sizes[2]).to(device)
    loss = fused_linear_loss(
        hidden_TH,
        LinearHead(weight_VH, shard, 0.7),
        token_loss,
        target_T=target_T,
        entropy=True,
        teacher=teacher,
    )
    loss.backward()
    assert hidden_TH.grad is not None and weight_VH.grad is not None
    found = {"loss": loss.detach(), "hidden": hidden_TH.grad, "weight": weight_VH.grad}
    return {name: value.cpu() for name, value in found.items()}


def dense(form: Divergence, sizes: tuple[int, int, int], dtype: torch.dtype) -> Results:
    """The same in float64 on the device, by autograd on whole logits."""
    hidden_TH, weight_VH, theirs_DH, theirs_VH = (item.cuda().double() for item in inputs(*sizes, dtype))
    hidden_TH.requires_grad_(), weight_VH.requires_grad_()
    student, teacher = hidden_TH @ weight_VH.t() / 0.7, theirs_DH @ theirs_VH.t() / 0.7
    target_T = targets(sizes[0], sizes[2]).cuda()
    divergence_T = reference.divergence(student[-len(teacher) :], teacher, form.alpha)
    log_prob_T = student.log_softmax(-1).gather(1, target_T[:, None])[:, 0]
    loss = (0.1 * reference.entropy(student) - log_prob_T).sum() + 3 * divergence_T.sum()
    loss.backward()
    assert hidden_TH.grad is not None and weight_VH.grad is not None
    found = {"loss": loss.detach(), "hidden": hidden_TH.grad, "weight": weight_VH.grad}
    return {name: value.cpu() for name, value in found.items()}


def error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference relative to the norm of what is expected."""
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_against_dense_float64(alpha: float, dtype: torch.dtype, limit: float) -> None:
    """fp32: sums of 50,000 terms round at 1e-6. bf16: the gradient of the logits is rounded by 0.4 %."""
    sizes = (384, 256, 50001)
    found, expected = fused("cuda", Divergence(alpha), sizes, dtype), dense(Divergence(alpha), sizes, dtype)
    for name, value in expected.items():
        assert error(found[name], value) < limit, name


@pytest.mark.parametrize("form", [Divergence(0.5), Divergence(0.5, 100), Divergence(0.3, 100, tail=False)])
def test_cuda_equals_the_cpu(form: Divergence) -> None:
    """The same fp32 maths in another order."""
    sizes = (96, 64, 3001)
    cpu, cuda = (fused(device, form, sizes, torch.float32) for device in ("cpu", "cuda"))
    for name, value in cpu.items():
        assert error(cuda[name], value.double()) < 1e-5, name


@pytest.mark.parametrize("accumulated", [False, True])
def test_memory_at_full_size_is_as_predicted(accumulated: bool) -> None:
    """BT 8192, H 4096, V 151936, bf16: within a tenth of the prediction, far below the logits' 10 GB."""
    sizes: Any = (8192, 4096, 151936)
    if torch.cuda.get_device_properties(0).total_memory < 20 << 30:
        pytest.skip("needs 20 GiB of device memory")
    hidden_TH, weight_VH = (
        torch.randn(rows, sizes[1], device="cuda", dtype=torch.bfloat16) / 64 for rows in (sizes[0], sizes[2])
    )
    hidden_TH.requires_grad_(), weight_VH.requires_grad_()
    shard = VocabShard(None, sizes[2], sizes[2])
    theirs = TeacherSide(hidden_TH.detach(), LinearHead(weight_VH.detach(), shard), Divergence(0.5))

    def token_loss(rows: slice, terms: TokenTerms) -> Tensor:
        assert terms.divergence_T is not None
        return terms.divergence_T.sum()

    main_grad_VH = torch.zeros_like(weight_VH, dtype=torch.float32) if accumulated else None
    head = LinearHead(weight_VH, shard, main_grad_VH=main_grad_VH)
    meter = platform.MemoryMeter()
    fused_linear_loss(hidden_TH, head, token_loss, teacher=theirs)
    predicted = fused_linear_bytes(
        sizes[0], sizes[0], sizes[1], sizes[2], torch.bfloat16, "cuda", accumulated=accumulated
    )
    assert meter.rise() == pytest.approx(predicted, rel=0.1)
