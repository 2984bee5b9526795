"""Per-token weights: teacher entropy, engine mismatch, aggregation.

Shape suffixes: R response tokens of one rollout.
"""

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0


def entropy_weights(entropy_R: Tensor, beta: float) -> Tensor:
    """Return exp(-beta H), not yet brought to mean 1 (docs/algorithms.md section 5)."""
    return torch.exp(-beta * entropy_R)


def capped_ratio(log_prob_R: Tensor, behaviour_R: Tensor, cap: float | None) -> Tensor:
    """Return min(exp(log_prob - behaviour), cap) with |log ratio| clamped to 20; ones if ``cap`` is None."""
    if cap is None:
        return torch.ones_like(log_prob_R)
    log_ratio_R = (log_prob_R - behaviour_R).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return torch.exp(log_ratio_R).clamp(max=cap)


def aggregation_weights(length: int, aggregation: str) -> Tensor:
    """Weigh every token the same (``token_mean``) or every sequence (``seq_mean_token_mean``)."""
    weight = 1.0 if aggregation == "token_mean" else 1.0 / max(length, 1)
    return torch.full((length,), weight, dtype=torch.float64)
