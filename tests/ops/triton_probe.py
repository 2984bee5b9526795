"""Kernels for the tests alone: apply one elementary function. Imported only where Triton is."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from megatron_srpo.ops.triton_kernels import expm1, log1p


@triton.jit
def _expm1_kernel(source: tl.tensor, target: tl.tensor, size: tl.tensor, BLOCK: tl.constexpr) -> None:
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(source + place, mask=place < size, other=0.0)
    tl.store(target + place, expm1(x), mask=place < size)


@triton.jit
def _log1p_kernel(source: tl.tensor, target: tl.tensor, size: tl.tensor, BLOCK: tl.constexpr) -> None:
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(source + place, mask=place < size, other=0.0)
    tl.store(target + place, log1p(x), mask=place < size)


def apply(name: str, x: Tensor) -> Tensor:
    """The kernels' `expm1` or `log1p` of every entry of an fp32 vector."""
    kernel = {"expm1": _expm1_kernel, "log1p": _log1p_kernel}[name]
    result = torch.empty_like(x)
    kernel[(triton.cdiv(len(x), 4096),)](x, result, len(x), BLOCK=4096)
    return result
