"""The k largest logits of a sharded vocabulary, and the logits at given ids.

Shapes: T tokens, V local vocabulary (padding included), K ids per token.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_srpo.errors import ConfigError
from megatron_srpo.ops.shard import VocabShard


@torch.no_grad()
def vocab_parallel_topk(logits_TV: Tensor, k: int, shard: VocabShard) -> tuple[Tensor, Tensor]:
    """The k largest real entries per token: (values_TK, global ids_TK), sorted, without gradient.

    Equal logits are ordered by smaller id (bf16 products make ties common), so the answer is the same on all
    ranks and for every size of the group. Communication: one all-gather of k values and ids per token and
    rank. For gradients pass the ids to `vocab_parallel_gather`.

    Raises ConfigError unless 1 <= k <= vocab_size.
    """
    if not 1 <= k <= shard.vocab_size:
        raise ConfigError(
            f"k {k} with a vocabulary of {shard.vocab_size} entries: need 1 <= k <= {shard.vocab_size}"
        )
    shard.check_shapes(logits_TV)
    values_TK, columns_TK = _local_topk(shard.valid(logits_TV), min(k, shard.valid_local))
    # A rank with fewer than k entries fills up with candidates that lose to every real one.
    missing = k - values_TK.shape[1]
    values_TK = torch.nn.functional.pad(values_TK, (0, missing), value=float("-inf"))
    ids_TK = torch.nn.functional.pad(columns_TK + shard.start, (0, missing), value=shard.padded_size)
    values_TK, ids_TK = _sort_candidates(shard.gather(values_TK), shard.gather(ids_TK))
    return values_TK[:, :k].contiguous(), ids_TK[:, :k].contiguous()


def _local_topk(columns_TV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """k largest per row with their columns; of entries equal to the k-th value, the smallest columns."""
    if k == 0:
        return columns_TV[:, :0], columns_TV.new_empty((columns_TV.shape[0], 0), dtype=torch.long)
    values_TK, found_TK = columns_TV.topk(k, dim=1, sorted=True)
    threshold_T1 = values_TK[:, -1:]
    # torch.topk takes any of the entries that tie with the threshold: choose these again, by column.
    positions_V = torch.arange(columns_TV.shape[1], device=columns_TV.device, dtype=torch.int32)
    tied_TV = torch.where(columns_TV == threshold_T1, positions_V, torch.iinfo(torch.int32).max)
    tied_TK = tied_TV.topk(k, dim=1, largest=False, sorted=True).values.long()
    above_T1 = (values_TK > threshold_T1).sum(dim=1, keepdim=True)
    slot_TK = torch.arange(k, device=columns_TV.device) - above_T1
    return values_TK, torch.where(slot_TK < 0, found_TK, tied_TK.gather(1, slot_TK.clamp(min=0)))


def _sort_candidates(values: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Rows ordered by falling value, equal values by rising id: two sorts, the second one stable."""
    ids, order = ids.sort(dim=1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values, ids.gather(1, order)


class _Gather(torch.autograd.Function):
    """Logits at global ids: every rank hands in what it owns; the gradient is added on the owner only."""

    @staticmethod
    def forward(ctx: Any, logits_TV: Tensor, ids_TK: Tensor, shard: VocabShard) -> Tensor:
        local_TK, owned_TK, real_TK = shard.locate(ids_TK)
        ctx.save_for_backward(local_TK, owned_TK)
        ctx.shape = logits_TV.shape
        values_TK = shard.sum_(torch.where(owned_TK, logits_TV.gather(1, local_TK), 0.0))
        return torch.where(real_TK, values_TK, float("nan"))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TK: Tensor) -> tuple[Tensor, None, None]:
        local_TK, owned_TK = ctx.saved_tensors
        grad_TV = grad_TK.new_zeros(ctx.shape)
        return grad_TV.scatter_add_(1, local_TK, torch.where(owned_TK, grad_TK, 0.0)), None, None


def vocab_parallel_gather(logits_TV: Tensor, ids_TK: Tensor, shard: VocabShard) -> Tensor:
    """Logits at K global ids per token: (T, K), identical on all ranks, differentiable (repeated ids add up).

    Ids outside [0, vocab_size) give NaN and no gradient; see `check_targets`. One all-reduce of K numbers
    per token.
    """
    shard.check_shapes(logits_TV, ids_TK)
    return _Gather.apply(logits_TV, ids_TK, shard)
