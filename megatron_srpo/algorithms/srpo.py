"""SRPO (arXiv 2604.02288): correct rollouts to GRPO, failed ones to self-distillation.

A failed rollout about which the teacher can be told nothing (its whole group failed) stays on the policy
branch: with binary rewards its advantage is 0, and its tokens stay in the denominator.
"""

import torch
from torch import Tensor

from megatron_srpo.algorithms.types import Route


def route(correct_N: Tensor, information_N: Tensor) -> Tensor:
    """Send z_SDPO = (1 - correct) * information to distillation, the rest to the policy branch."""
    return torch.where(~correct_N & information_N, int(Route.DISTILL), int(Route.POLICY))
