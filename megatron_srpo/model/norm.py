"""RMSNorm for the local layer spec."""

from typing import Any

import torch
import torch.nn.functional as F

from megatron_srpo import platform
from megatron_srpo.model.megatron_core import TransformerConfig


class RMSNorm(torch.nn.Module):
    """Root-mean-square norm over the last dimension.

    Megatron-Core's own local norm refuses sequence parallelism; all that it needs is the flag on the weight,
    by which the gradients of replicated weights are summed over tensor-parallel ranks.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        weight = torch.ones(hidden_size, dtype=config.params_dtype, device=platform.device())
        self.weight: Any = torch.nn.Parameter(weight)
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise ``x`` of shape [..., hidden_size]."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
