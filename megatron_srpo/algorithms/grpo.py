"""GRPO (DeepSeekMath, arXiv 2402.03300; as strengthened in SRPO, arXiv 2604.02288).

Deviation from the printed formula: advantages are mean-centred and not divided by the standard deviation by
default (``policy.normalize_by_std`` divides), clipping is asymmetric and the mean is over tokens.
"""

import torch
from torch import Tensor

from megatron_srpo.algorithms.types import Route


def route(correct_N: Tensor, information_N: Tensor) -> Tensor:
    """Send every rollout to the policy branch."""
    return torch.full(correct_N.shape, int(Route.POLICY))
