"""Divergence of two distributions, event by event, with the slopes from which gradients are formed.

Shapes: T tokens, N events (columns, or top-k and tail). The form is :mod:`.divergence`'s.
"""

import torch
from torch import Tensor

_LOG_RATIO_MAX = 40.0
"""From here on expm1(x) is exp(x) to the last bit of float64, and later exp would overflow."""


def _weighted_(log_ratio: Tensor, prob: Tensor) -> Tensor:
    """prob * log_ratio in the place of log_ratio, with 0 * (infinite or undefined) = 0."""
    return log_ratio.mul_(prob).masked_fill_(prob == 0, 0.0)


def _difference(s: Tensor, t: Tensor, delta: Tensor) -> Tensor:
    """s - t from delta = log t/s: relatively exact where s and t, each rounded, would cancel."""
    return _weighted_(delta.abs().neg_().expm1_(), torch.where(delta > 0, t, -s))


def _log_mixture_ratios(delta: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """(log m/s, log m/t) from delta = log t/s, exact to the last bits for small delta, never overflowing.

    log m/s = log(1 - alpha + alpha exp(delta)) = log1p(alpha expm1(delta)). The smaller of alpha, 1 - alpha
    is used (1 - alpha would round a small alpha away) by exchanging the roles of s and t. Delta may be lost.
    """
    if alpha > 0.5:
        ratio_t, ratio_s = _log_mixture_ratios(delta.neg_(), 1.0 - alpha)
        return ratio_s, ratio_t
    bounded = delta.clamp(max=_LOG_RATIO_MAX)
    ratio = bounded.expm1().mul_(alpha).log1p_()
    beyond = (delta - _LOG_RATIO_MAX).clamp_(min=0.0)  # not delta - bounded, which is undefined at -inf
    return beyond.add_(ratio), ratio.sub_(bounded)


def divergence_events(
    log_s_TN: Tensor, log_t_TN: Tensor, alpha: float, *, whole: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(sum of the loss over these events (T,), slope_TN, student probabilities_TN); overwrites its arguments.

    `whole`: over all events (of all ranks) both sides sum to exactly 1. Then the KL forms carry + q - p for
    KL(p||q), which sums to zero and makes every term non-negative, so that an error of the normaliser enters
    squared and a small KL keeps its digits in fp32. The clamp of the tail breaks that sum, by up to 1e-7.
    """
    t_TN = log_t_TN.exp()
    delta_TN = log_t_TN.sub_(log_s_TN)
    s_TN = log_s_TN.exp_()
    if alpha == 0.0:
        slope_TN = _difference(s_TN, t_TN, delta_TN) if whole else -t_TN
        loss_TN = _weighted_(delta_TN, t_TN)
        loss_TN = loss_TN.add_(slope_TN) if whole else loss_TN
    elif alpha == 1.0:
        gap_TN = _difference(s_TN, t_TN, delta_TN) if whole else None
        kl_TN = _weighted_(delta_TN.neg_(), s_TN)
        slope_TN, loss_TN = (kl_TN + s_TN, kl_TN) if gap_TN is None else (kl_TN, kl_TN - gap_TN)
    else:
        ratio_s_TN, ratio_t_TN = _log_mixture_ratios(delta_TN, alpha)
        slope_TN = _weighted_(ratio_s_TN, s_TN).mul_(alpha - 1.0)
        loss_TN = _weighted_(ratio_t_TN, t_TN).mul_(-alpha).add_(slope_TN)
    return loss_TN.sum(dim=1), slope_TN, s_TN
