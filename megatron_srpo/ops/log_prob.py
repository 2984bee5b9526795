"""Log-probabilities, entropy and log-normaliser of sharded logits, with exact gradients.

Shapes: T tokens, V local vocabulary (padding included), K ids per token (here 0 or 1).

With s = softmax(x): d log s_j / dx = e_j - s; dH / dx = -s (log s + H); d log-normaliser / dx = s.
Backward needs no collective: every rank knows the normaliser and receives the same grad_output.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_srpo.errors import DataError
from megatron_srpo.ops.shard import VocabShard, math_dtype, row_max

_LOWEST_LOG = -1e30
"""Stands for log 0: below every logarithm that occurs, and far enough from overflow to be multiplied."""


class LogProbs(NamedTuple):
    """Per-token results, identical on every rank of the group, in nats; each is differentiable."""

    log_prob_T: Tensor
    entropy_T: Tensor | None
    log_normaliser_T: Tensor


class _LogProb(torch.autograd.Function):
    """(logits_TV, ids_TK) -> log-probabilities of the ids, entropy (or None), log-normaliser.

    Of size T x V it keeps only its own input for backward, where the probabilities are formed again.
    """

    @staticmethod
    def forward(
        ctx: Any, logits_TV: Tensor, ids_TK: Tensor, shard: VocabShard, with_entropy: bool
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        dtype = math_dtype(logits_TV)
        local_TK, owned_TK, real_TK = shard.locate(ids_TK)
        shifted_TV = shard.valid(logits_TV).to(dtype, copy=True)
        max_T = shard.max_(row_max(shifted_TV))
        shifted_TV.sub_(max_T[:, None])
        chosen_TK = logits_TV.gather(1, local_TK).to(dtype) - max_T[:, None]
        # One all-reduce carries the chosen logits (0 from ranks that do not own them) and the sums.
        parts = [torch.where(owned_TK, chosen_TK, 0.0), *_sums(shifted_TV, with_entropy)]
        sums = shard.sum_(torch.cat(parts, dim=1))
        ids = ids_TK.shape[1]
        log_sum_T = sums[:, ids].log()
        log_prob_TK = torch.where(real_TK, sums[:, :ids] - log_sum_T[:, None], float("nan"))
        # H = log sum + E[max - x]: both are >= 0, so nothing cancels.
        entropy_T = log_sum_T - sums[:, ids + 1] / sums[:, ids] if with_entropy else None
        ctx.set_materialize_grads(False)
        ctx.shard = shard
        ctx.save_for_backward(logits_TV, local_TK, owned_TK, real_TK, max_T, log_sum_T, entropy_T)
        return log_prob_TK, entropy_T, max_T + log_sum_T

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_TK: Tensor | None, grad_entropy_T: Tensor | None, grad_normaliser_T: Tensor | None
    ) -> tuple[Tensor, None, None, None]:
        logits_TV, local_TK, owned_TK, real_TK, max_T, log_sum_T, entropy_T = ctx.saved_tensors
        log_p_TV = ctx.shard.valid(logits_TV).to(max_T.dtype, copy=True)
        log_p_TV.sub_(max_T[:, None]).sub_(log_sum_T[:, None])
        factor_T = torch.zeros_like(max_T) if grad_normaliser_T is None else grad_normaliser_T.clone()
        if grad_TK is not None:
            factor_T -= torch.where(real_TK, grad_TK, 0.0).sum(dim=1)
        if grad_entropy_T is None:
            columns_TV = log_p_TV.exp_().mul_(factor_T[:, None])
        else:
            columns_TV = log_p_TV.exp()
            factor_TV = _finite_(log_p_TV).add_(entropy_T[:, None]).mul_(grad_entropy_T[:, None])
            columns_TV.mul_(factor_TV.neg_().add_(factor_T[:, None]))
        grad_TV = ctx.shard.with_padding(columns_TV)
        if grad_TK is not None:
            grad_TV.scatter_add_(1, local_TK, torch.where(owned_TK, grad_TK, 0.0))
        return grad_TV.to(logits_TV.dtype), None, None, None


def _finite_(log_TV: Tensor) -> Tensor:
    """-inf becomes a number, in place, so that 0 * log 0 is 0; NaN stays visible."""
    return log_TV.clamp_(min=_LOWEST_LOG)


def _sums(shifted_TV: Tensor, with_entropy: bool) -> list[Tensor]:
    """Local sums of exp(z) and, for the entropy, of z exp(z), z = x - max; each (T, 1). Overwrites z."""
    if not with_entropy:
        return [shifted_TV.exp_().sum(dim=1, keepdim=True)]
    exp_TV = shifted_TV.exp()
    total = exp_TV.sum(dim=1, keepdim=True)
    return [total, exp_TV.mul_(_finite_(shifted_TV)).sum(dim=1, keepdim=True)]


def vocab_parallel_log_prob(
    logits_TV: Tensor, target_T: Tensor, shard: VocabShard, *, entropy: bool = False
) -> LogProbs:
    """Log-probability of one id per token; on request the exact entropy over the full vocabulary.

    `target_T` holds global ids. Whether they lie in [0, vocab_size) is not checked here, because that would
    make a GPU wait for the host on every call: call `check_targets` once per batch. An id outside gives NaN,
    without gradient (give ignored positions any legal id).

    Two all-reduces of one to three numbers per token forward, none backward; one T x V tensor (the logits)
    is kept for backward. fp32 math (float64 for float64 logits). Logits of -inf are entries of probability
    0; a row needs one finite logit.
    """
    target_T1 = target_T.unsqueeze(-1)
    shard.check_shapes(logits_TV, target_T1)
    log_prob_T1, entropy_T, log_normaliser_T = _LogProb.apply(logits_TV, target_T1, shard, entropy)
    return LogProbs(log_prob_T1.squeeze(1), entropy_T, log_normaliser_T)


def vocab_parallel_entropy(logits_TV: Tensor, shard: VocabShard) -> Tensor:
    """Exact entropy of softmax over the full vocabulary, (T,), in nats, differentiable; 0 log 0 = 0."""
    shard.check_shapes(logits_TV)
    no_ids = logits_TV.new_empty((logits_TV.shape[0], 0), dtype=torch.long)
    return _LogProb.apply(logits_TV, no_ids, shard, True)[1]


def check_targets(target_T: Tensor, shard: VocabShard) -> None:
    """DataError that names the first id outside [0, vocab_size). Waits for the GPU: once per batch is
    enough.
    """
    bad = ((target_T < 0) | (target_T >= shard.vocab_size)).nonzero()
    if len(bad):
        position = tuple(bad[0].tolist())
        raise DataError(
            f"token id {int(target_T[position])} at position {position} is outside the vocabulary of "
            f"{shard.vocab_size}; use the model's own tokenizer, and give ignored positions any legal id"
        )
