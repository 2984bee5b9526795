"""A vocabulary shard of an output head, used chunk by chunk: logits forward, two matrix products backward.

Shapes: T tokens (C of a chunk), H hidden size, V this rank's rows of the head (padding included).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_srpo.errors import ConfigError
from megatron_srpo.ops.shard import VocabShard, math_dtype

#: Most bytes of the fp32 copy of a strip, where a type has no product that accumulates into another.
STRIP_BYTES = 32 << 20


@dataclass(frozen=True)
class LinearHead:
    """What turns hidden states into logits.

    Attributes:
        weight_VH: this rank's rows, ``shard.local_size`` of them.
        shard: which part of the vocabulary they are.
        temperature: logits are divided by it.
        fp32_gemm: multiply in fp32 whatever the type of the hidden states.
        main_grad_VH: where the head's gradient is accumulated over micro-batches, in the math type. With it
            no buffer for that gradient is made and nothing is rounded; autograd gets zeros in its place, and
            the gradient of a fused loss itself must be 1, because it is formed and added in forward.

    Raises:
        ConfigError: a temperature that is not positive and finite.
        ValueError: a weight or an accumulator that does not fit.
    """

    weight_VH: Tensor
    shard: VocabShard
    temperature: float = 1.0
    fp32_gemm: bool = False
    main_grad_VH: Tensor | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.temperature < float("inf"):
            raise ConfigError(
                f"temperature {self.temperature}: the logits are divided by it; give a positive finite number"
            )
        if self.weight_VH.dim() != 2 or self.weight_VH.shape[0] != self.shard.local_size:
            raise ValueError(
                f"head of shape {tuple(self.weight_VH.shape)}: this shard needs ({self.shard.local_size}, "
                "hidden), padding included"
            )
        main_VH, math = self.main_grad_VH, math_dtype(self.weight_VH)
        if main_VH is not None and (main_VH.shape != self.weight_VH.shape or main_VH.dtype != math):
            raise ValueError(
                f"accumulator of shape {tuple(main_VH.shape)} and type {main_VH.dtype} for a head of shape "
                f"{tuple(self.weight_VH.shape)}: need that shape and {math}"
            )

    def check_hidden(self, hidden_TH: Tensor) -> None:
        """ValueError unless the hidden states fit the head: a wrong shape is a defect."""
        if hidden_TH.dim() != 2 or hidden_TH.shape[1] != self.weight_VH.shape[1]:
            raise ValueError(
                f"hidden states of shape {tuple(hidden_TH.shape)} for a head of shape "
                f"{tuple(self.weight_VH.shape)}: need (tokens, {self.weight_VH.shape[1]})"
            )

    def gemm_dtype(self, hidden_TH: Tensor) -> torch.dtype:
        """Type of the factors of all matrix products; they are accumulated in fp32 or better."""
        return math_dtype(hidden_TH) if self.fp32_gemm else hidden_TH.dtype

    def logits(self, hidden_CH: Tensor, buffer_CV: Tensor) -> Tensor:
        """Write the logits of ``buffer_CV``'s columns (all real ones, or those and padding) into it.

        The buffer is in the math type. Products of bf16 stay in fp32 where the device can do so (CUDA), and
        are rounded to bf16 first where it cannot.
        """
        dtype = self.gemm_dtype(hidden_CH)
        weight_VH = self.weight_VH[: buffer_CV.shape[1]].detach().to(dtype)
        _multiply(hidden_CH.to(dtype), weight_VH.t(), buffer_CV)
        return buffer_CV if self.temperature == 1.0 else buffer_CV.mul_(1.0 / self.temperature)


class HeadGradients:
    """Gradients of hidden states and head, accumulated over chunks in fp32 (float64 for float64).

    Args:
        hidden_TH: the hidden states, all chunks.
        wanted: whether the hidden states' and the head's gradient are wanted.
    """

    def __init__(self, head: LinearHead, hidden_TH: Tensor, wanted: tuple[bool, bool]) -> None:
        self._head, self._hidden_TH = head, hidden_TH
        self.hidden_TH = torch.empty_like(hidden_TH) if wanted[0] else None
        self.weight_VH = _accumulator(head, hidden_TH) if wanted[1] else None

    def add(self, rows: slice, grad_CV: Tensor) -> None:
        """Take in the gradient of a chunk's logits, which is overwritten. Each row is given once."""
        hidden_CH = self._hidden_TH[rows]
        dtype = self._head.gemm_dtype(hidden_CH)
        columns = grad_CV.shape[1]
        if self._head.temperature != 1.0:
            grad_CV.mul_(1.0 / self._head.temperature)
        grad_CV = grad_CV.to(dtype)
        if self.hidden_TH is not None:
            product_CH = grad_CV @ self._head.weight_VH[:columns].detach().to(dtype)
            self.hidden_TH[rows] = product_CH.to(hidden_CH.dtype)
        if self.weight_VH is not None:
            _accumulate(self.weight_VH[:columns], grad_CV.t(), hidden_CH.to(dtype))

    def scaled(self, factor: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return both times a scalar, in the types of their tensors. Overwrites them: to be called once."""
        hidden_TH = None if self.hidden_TH is None else self.hidden_TH.mul_(factor.to(self.hidden_TH.dtype))
        if self.weight_VH is None:
            return hidden_TH, None
        if self._head.main_grad_VH is not None:
            # Checked on the device: a host that waited for the answer here would idle it.
            torch._assert_async(factor == 1.0, "with main_grad_VH the gradient of a fused loss must be 1")
            return hidden_TH, torch.zeros_like(self._head.weight_VH)
        return hidden_TH, self.weight_VH.mul_(factor).to(self._head.weight_VH.dtype)


def _accumulator(head: LinearHead, hidden_TH: Tensor) -> Tensor:
    if head.main_grad_VH is not None:
        return head.main_grad_VH
    return torch.zeros(head.weight_VH.shape, dtype=math_dtype(hidden_TH), device=hidden_TH.device)


def _multiply(left: Tensor, right: Tensor, out: Tensor) -> None:
    """out = left @ right."""
    if left.dtype == out.dtype:
        torch.mm(left, right, out=out)
    elif left.is_cuda:
        torch.mm(left, right, out_dtype=out.dtype, out=out)
    else:
        out.copy_(left @ right)


def _accumulate(into: Tensor, left: Tensor, right: Tensor) -> None:
    """into += left @ right."""
    if left.dtype == into.dtype:
        into.addmm_(left, right)
    elif left.is_cuda:
        torch.addmm(into, left, right, out_dtype=into.dtype, out=into)
    else:
        step = max(1, STRIP_BYTES // (4 * max(1, left.shape[1])))
        right = right.to(into.dtype)
        for start in range(0, into.shape[0], step):
            into[start : start + step].addmm_(left[start : start + step].to(into.dtype), right)
