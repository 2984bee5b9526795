"""Logits of one vocabulary shard from hidden states.

Shapes: T tokens, H hidden, V local vocabulary (padding included).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_srpo.errors import ConfigError
from megatron_srpo.ops.shard import VocabShard, math_dtype


class _Projection(torch.autograd.Function):
    """logits = hidden @ weight^T * scale, with the gradient of the replicated hidden states all-reduced."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TH: Tensor,
        weight_VH: Tensor,
        shard: VocabShard,
        scale: float,
        gemm_dtype: torch.dtype,
    ) -> Tensor:
        ctx.save_for_backward(hidden_TH, weight_VH)
        ctx.shard, ctx.scale, ctx.gemm_dtype = shard, scale, gemm_dtype
        product_TV = hidden_TH.to(gemm_dtype) @ weight_VH.to(gemm_dtype).t()
        logits_TV = product_TV.to(math_dtype(hidden_TH)).mul_(scale)
        logits_TV[:, shard.valid_local :] = float("-inf")
        return logits_TV

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TV: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        hidden_TH, weight_VH = ctx.saved_tensors
        valid = ctx.shard.valid_local
        grad_TV = (grad_TV[:, :valid] * ctx.scale).to(ctx.gemm_dtype)
        grad_hidden_TH = grad_weight_VH = None
        if ctx.needs_input_grad[0]:
            local_TH = grad_TV @ weight_VH[:valid].to(ctx.gemm_dtype)
            grad_hidden_TH = ctx.shard.sum_(local_TH).to(hidden_TH.dtype)
        if ctx.needs_input_grad[1]:
            grad_weight_VH = torch.zeros_like(weight_VH)
            grad_weight_VH[:valid] = grad_TV.t() @ hidden_TH.to(ctx.gemm_dtype)
        return grad_hidden_TH, grad_weight_VH, None, None, None


def vocab_parallel_logits(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    shard: VocabShard,
    temperature: float = 1.0,
    *,
    fp32_gemm: bool = False,
) -> Tensor:
    """Logits of this rank's columns, divided by the sampling temperature.

    `hidden_TH` is the same on every rank of the group (gather it first under sequence parallelism, without
    summing its gradient: that is done here); `weight_VH` holds this rank's `shard.local_size` rows.

    Returns (T, V) in float32, or float64 for float64 input. The matrix product runs in the type of
    `hidden_TH` (for bf16 the product is rounded to bf16 before it becomes float32) unless `fp32_gemm` asks
    for float32, forward and backward. Padding columns are -inf.

    Backward: the gradient of `hidden_TH` is summed over the group, in the type of the matrix product, so
    every rank gets the whole of it; the gradient of `weight_VH` is local, and zero in the rows of padding.
    Both are returned in the type of their tensor.

    Raises ConfigError for a temperature that is not positive, ValueError for shapes that do not fit the
    shard.
    """
    if not 0.0 < temperature < float("inf"):
        raise ConfigError(
            f"temperature {temperature}: the logits are divided by it; give a positive finite number"
        )
    if hidden_TH.dim() != 2 or weight_VH.shape != (shard.local_size, hidden_TH.shape[1]):
        raise ValueError(
            f"hidden {tuple(hidden_TH.shape)} and weight {tuple(weight_VH.shape)} do not fit: "
            f"need (tokens, hidden) and ({shard.local_size}, hidden)"
        )
    gemm_dtype = math_dtype(hidden_TH) if fp32_gemm else hidden_TH.dtype
    return _Projection.apply(hidden_TH, weight_VH, shard, 1.0 / temperature, gemm_dtype)
