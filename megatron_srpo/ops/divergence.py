"""Divergences between a student and a teacher on a sharded vocabulary (SDPO, arXiv 2601.20802, logit level).

Shapes: T tokens, V local vocabulary (padding included), K ids per token, N events (columns, or top-k and
tail).

alpha = 0: KL(T||S); alpha = 1: KL(S||T); between: (1-alpha) KL(S||M) + alpha KL(T||M), M = (1-alpha) S +
alpha T. The family is not continuous at its ends: the middle form tends to 0 there, as alpha KL(T||S) for
alpha -> 0 and as (1-alpha) KL(S||T) for alpha -> 1.

Gradients go to the student only, through M as well. The derivative of the loss with respect to log s is a
*slope* per event: s - t, or s log(s/t), or (1-alpha) s log(s/m); in the last one everything that comes from M
cancels, because m/m = 1. Through the softmax the gradient of the logits is slope - s * (sum of slopes).
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_srpo.errors import ConfigError
from megatron_srpo.ops.events import divergence_events
from megatron_srpo.ops.shard import VocabShard, log_softmax_columns, math_dtype
from megatron_srpo.ops.topk import vocab_parallel_gather, vocab_parallel_topk

_TAIL_LOG_PROB_MIN = math.log(-math.expm1(-1e-7))
"""Lower clamp of the tail's log-probability: the log of the top-k mass is held at or below -1e-7."""


class _TopAndTail(torch.autograd.Function):
    """Log-probabilities of K distinct ids and of everything else: (T, K + 1), the same on every rank.

    The tail's log(1 - mass of the K) is formed as the log of the sum over the rest: the same number, but in
    fp32 1 - mass has lost all digits below 1e-7, and KL(T||S) would show it when the student is sure and
    wrong. Of size T x V it keeps the probabilities of the rest, r; with g the gradient of the result and G
    its sum, the gradient of the logits is r * (g_tail / sum(r) - G) outside the K and g_k - p_k G at them.
    """

    @staticmethod
    def forward(ctx: Any, logits_TV: Tensor, ids_TK: Tensor, shard: VocabShard) -> Tensor:
        (log_p_TV,) = log_softmax_columns((logits_TV,), math_dtype(logits_TV), shard)
        log_p_TV = shard.with_padding(log_p_TV)
        local_TK, owned_TK, _ = shard.locate(ids_TK)
        chosen_TK = torch.where(owned_TK, log_p_TV.gather(1, local_TK), 0.0)
        rest_TV = log_p_TV.exp_()
        rest_TV[:, shard.valid_local :] = 0.0
        rest_TV.scatter_add_(1, local_TK, torch.where(owned_TK, -chosen_TK.exp(), 0.0))
        sums = shard.sum_(torch.cat([chosen_TK, rest_TV.sum(dim=1, keepdim=True)], dim=1))
        log_p_TK, rest_T1 = sums[:, :-1], sums[:, -1:]
        ctx.save_for_backward(rest_TV, rest_T1, log_p_TK, local_TK, owned_TK)
        ctx.logits_dtype = logits_TV.dtype
        return torch.cat([log_p_TK, rest_T1.log().clamp_(min=_TAIL_LOG_PROB_MIN)], dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TN: Tensor) -> tuple[Tensor, None, None]:
        rest_TV, rest_T1, log_p_TK, local_TK, owned_TK = ctx.saved_tensors
        clamped_T1 = rest_T1.log() < _TAIL_LOG_PROB_MIN
        grad_TK, tail_T1 = grad_TN[:, :-1], grad_TN[:, -1:].masked_fill(clamped_T1, 0.0)
        total_T1 = grad_TK.sum(dim=1, keepdim=True) + tail_T1
        grad_TV = rest_TV * (tail_T1 / rest_T1.masked_fill(clamped_T1, 1.0) - total_T1)
        chosen_TK = grad_TK - log_p_TK.exp() * total_T1
        grad_TV.scatter_add_(1, local_TK, torch.where(owned_TK, chosen_TK, 0.0))
        return grad_TV.to(ctx.logits_dtype), None, None


class _FullDivergence(torch.autograd.Function):
    """Divergence over all real entries. The gradient is formed in forward, the one T x V buffer kept."""

    @staticmethod
    def forward(ctx: Any, student_TV: Tensor, teacher_TV: Tensor, alpha: float, shard: VocabShard) -> Tensor:
        log_s_TV, log_t_TV = log_softmax_columns((student_TV, teacher_TV), math_dtype(student_TV), shard)
        loss_T, slope_TV, s_TV = divergence_events(log_s_TV, log_t_TV, alpha, whole=True)
        sums_2T = shard.sum_(torch.stack([loss_T, slope_TV.sum(dim=1)]))
        if ctx.needs_input_grad[0]:
            grad_TV = slope_TV.sub_(s_TV.mul_(sums_2T[1][:, None]))
            ctx.save_for_backward(shard.with_padding(grad_TV).to(student_TV.dtype))
        return sums_2T[0].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_T: Tensor) -> tuple[Tensor, None, None, None]:
        (unit_grad_TV,) = ctx.saved_tensors
        return (unit_grad_TV * grad_T[:, None]).to(unit_grad_TV.dtype), None, None, None


class _EventDivergence(torch.autograd.Function):
    """Divergence of two sets of log-probabilities that every rank holds whole; gradient to the student's."""

    @staticmethod
    def forward(ctx: Any, log_s_TN: Tensor, log_t_TN: Tensor, alpha: float, whole: bool) -> Tensor:
        loss_T, slope_TN, _ = divergence_events(log_s_TN.clone(), log_t_TN.clone(), alpha, whole=whole)
        ctx.save_for_backward(slope_TN)
        return loss_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_T: Tensor) -> tuple[Tensor, None, None, None]:
        (slope_TN,) = ctx.saved_tensors
        return slope_TN * grad_T[:, None], None, None, None


def vocab_parallel_divergence(
    student_TV: Tensor, teacher_TV: Tensor, alpha: float, shard: VocabShard
) -> Tensor:
    """Divergence per token over the full vocabulary: (T,), in nats, identical on all ranks of the group.

    Both logits are already divided by the temperature and lie on the same shard. No gradient reaches the
    teacher. fp32 math (float64 for a float64 student), finite for all finite logits; an entry of logit -inf
    has probability 0. A KL is infinite where the second distribution is 0 and the first is not.

    Three all-reduces of two numbers per token forward, none backward. Forward takes about six buffers of
    T x V for a moment and keeps one: call it on chunks of tokens.

    Raises ConfigError for alpha outside [0, 1], ValueError for shapes that do not fit the shard.
    """
    _check(student_TV, teacher_TV, alpha, shard)
    return _FullDivergence.apply(student_TV, teacher_TV.detach(), alpha, shard)


def vocab_parallel_topk_divergence(
    student_TV: Tensor, teacher_TV: Tensor, alpha: float, k: int, shard: VocabShard, tail: bool = True
) -> Tensor:
    """Divergence per token over the *student's* k most probable entries: (T,), in nats, same on all ranks.

    tail=True: both sides keep their probabilities under the full vocabulary and get one more event, the
    rest, of log-probability log(-expm1(min(logsumexp(top-k log-probs), -1e-7))). tail=False: both are
    renormalised over the k. The choice of the ids carries no gradient.

    Raises ConfigError for alpha outside [0, 1] or k outside [1, vocab_size], ValueError for shapes that do
    not fit.
    """
    _check(student_TV, teacher_TV, alpha, shard)
    _, ids_TK = vocab_parallel_topk(student_TV, k, shard)
    dtype = math_dtype(student_TV)
    log_probs = _TopAndTail.apply if tail else _renormalised
    log_s_TN = log_probs(student_TV, ids_TK, shard).to(dtype)
    log_t_TN = log_probs(teacher_TV.detach(), ids_TK, shard).to(dtype)
    return _EventDivergence.apply(log_s_TN, log_t_TN, alpha, not tail)


def _renormalised(logits_TV: Tensor, ids_TK: Tensor, shard: VocabShard) -> Tensor:
    """Log-probabilities of the ids among themselves: (T, K). The full normaliser cancels: not computed."""
    chosen_TK = vocab_parallel_gather(logits_TV, ids_TK, shard)
    return chosen_TK.to(math_dtype(logits_TV)).log_softmax(dim=1)


def sampled_token_divergence(student_log_prob_T: Tensor, teacher_log_prob_T: Tensor) -> Tensor:
    """sg(log pi - log q) * log pi on the sampled tokens: (T,).

    Its gradient is a one-sample estimate of that of the reverse KL (alpha = 1); its value is not a
    divergence.
    """
    return (student_log_prob_T - teacher_log_prob_T).detach() * student_log_prob_T


def check_alpha(alpha: float) -> None:
    """ConfigError unless alpha lies in [0, 1]."""
    if not 0.0 <= alpha <= 1.0:
        raise ConfigError(
            f"alpha {alpha}: 0 is KL(teacher||student), 1 is KL(student||teacher); give a number in [0, 1]"
        )


def _check(student_TV: Tensor, teacher_TV: Tensor, alpha: float, shard: VocabShard) -> None:
    check_alpha(alpha)
    shard.check_shapes(student_TV)
    shard.check_shapes(teacher_TV)
    if student_TV.shape != teacher_TV.shape:
        raise ValueError(
            f"student {tuple(student_TV.shape)} and teacher {tuple(teacher_TV.shape)} differ in shape"
        )
