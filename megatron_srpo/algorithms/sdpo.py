"""SDPO (arXiv 2601.20802): distil every rollout about which the self-teacher can be told something.

A rollout without teacher information (no correct sibling, no feedback) contributes nothing and is not
counted in the denominator.
"""

import torch
from torch import Tensor

from megatron_srpo.algorithms.types import Route


def route(correct_N: Tensor, information_N: Tensor) -> Tensor:
    """Send rollouts with teacher information to distillation and drop the rest."""
    return torch.where(information_N, int(Route.DISTILL), int(Route.DROPPED))
