"""Statistics over prompt groups: advantages, and who has a correct sibling.

Shape suffixes: N rollouts of one replica's batch.
"""

import torch
from torch import Tensor

STD_EPSILON = 1e-6


def _group_sum(value_N: Tensor, group_N: Tensor) -> Tensor:
    """Sum over each rollout's group, written back to its members."""
    _, index_N = group_N.unique(return_inverse=True)
    totals = torch.zeros(int(index_N.max()) + 1 if index_N.numel() else 0, dtype=value_N.dtype)
    return totals.index_add(0, index_N, value_N)[index_N]


def group_advantages(reward_N: Tensor, group_N: Tensor, normalize_by_std: bool) -> Tensor:
    """Centre rewards on their group's mean, over all members, wherever they are routed.

    With ``normalize_by_std`` the result is divided by the group's (unbiased) standard deviation plus 1e-6, as
    GRPO's formula is printed; a group of one keeps advantage 0. Source: docs/algorithms.md, section 3.
    """
    reward_N = reward_N.double()
    size_N = _group_sum(torch.ones_like(reward_N), group_N)
    centred_N = reward_N - _group_sum(reward_N, group_N) / size_N
    if not normalize_by_std:
        return centred_N
    variance_N = _group_sum(centred_N.square(), group_N) / (size_N - 1).clamp(min=1)
    return centred_N / (variance_N.sqrt() + STD_EPSILON)


def has_sibling(marked_N: Tensor, group_N: Tensor) -> Tensor:
    """Say for each rollout whether *another* rollout of its prompt is marked."""
    marked_N = marked_N.double()
    return _group_sum(marked_N, group_N) - marked_N > 0.5


def siblings(index: int, marked_N: Tensor, group_N: Tensor) -> list[int]:
    """List the other marked rollouts of the same prompt, in batch order."""
    same_N = (group_N == group_N[index]) & marked_N.bool()
    return [other for other in same_N.nonzero().flatten().tolist() if other != index]
