"""Per-token policy losses, differentiable in the current log-probs.

Shape suffixes: R response tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_srpo.algorithms.weights import LOG_RATIO_LIMIT


@dataclass(frozen=True)
class PolicyLoss:
    """Token losses and, without gradient, where a clip was active (0 or 1 per token)."""

    loss_R: Tensor
    clipped_low_R: Tensor
    clipped_high_R: Tensor
    dual_clipped_R: Tensor


def clipped_policy_loss(
    log_prob_R: Tensor,
    old_R: Tensor,
    advantage_R: Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> PolicyLoss:
    """Return -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A) per token, rho = exp(log_prob - old).

    With ``dual_clip`` c, tokens of negative advantage lose at most c |A| (arXiv 1912.09729). The log ratio is
    clamped to +-20 so that a token of vanishing probability cannot overflow.
    """
    ratio_R = torch.exp((log_prob_R - old_R).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))
    plain_R = -ratio_R * advantage_R
    clipped_R = -ratio_R.clamp(1.0 - clip_low, 1.0 + clip_high) * advantage_R
    loss_R = torch.maximum(plain_R, clipped_R)
    active_R = clipped_R.detach() > plain_R.detach()
    dual_R = torch.zeros_like(active_R)
    if dual_clip is not None:
        bound_R = -dual_clip * advantage_R
        dual_R = (advantage_R < 0) & (loss_R.detach() > bound_R)
        loss_R = torch.where(advantage_R < 0, torch.minimum(loss_R, bound_R), loss_R)
    return PolicyLoss(
        loss_R=loss_R,
        clipped_low_R=(active_R & (advantage_R < 0)).to(loss_R.dtype),
        clipped_high_R=(active_R & (advantage_R > 0)).to(loss_R.dtype),
        dual_clipped_R=dual_R.to(loss_R.dtype),
    )


def k3_divergence(log_prob_R: Tensor, reference_R: Tensor) -> Tensor:
    """Estimate KL(policy || reference) per sampled token: exp(d) - 1 - d with d = reference - log_prob.

    Source: J. Schulman, "Approximating KL divergence" (2020), estimator k3; non-negative.
    """
    difference_R = (reference_R - log_prob_R).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return torch.expm1(difference_R) - difference_R
