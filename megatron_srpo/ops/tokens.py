"""How hidden states enter a vocabulary-parallel head: their gradient comes in parts, one from each rank.

Shapes: T tokens, H hidden size.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_srpo.ops.shard import VocabShard


def enter(hidden_TH: Tensor, shard: VocabShard, sequence_parallel: bool) -> Tensor:
    """Return all tokens' hidden states; their gradient is summed over the group.

    With ``sequence_parallel`` each rank gives an equal part of the tokens: they are gathered in rank order,
    and of the summed gradient each rank receives its own part (a reduce-scatter).
    """
    if shard.world == 1:
        return hidden_TH
    if sequence_parallel:
        return _Gathered.apply(hidden_TH, shard)
    return _Copied.apply(hidden_TH, shard)


class _Copied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_TH: Tensor, shard: VocabShard) -> Tensor:
        ctx.shard = shard
        return hidden_TH.view_as(hidden_TH)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TH: Tensor) -> tuple[Tensor, None]:
        return ctx.shard.sum_(grad_TH.contiguous()), None


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_TH: Tensor, shard: VocabShard) -> Tensor:
        ctx.shard = shard
        tokens, width = hidden_TH.shape
        whole_TH = hidden_TH.new_empty(tokens * shard.world, width)
        dist.all_gather_into_tensor(whole_TH, hidden_TH.contiguous(), group=shard.group)
        return whole_TH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TH: Tensor) -> tuple[Tensor, None]:
        shard = ctx.shard
        part_TH = grad_TH.new_empty(len(grad_TH) // shard.world, grad_TH.shape[1])
        dist.reduce_scatter_tensor(part_TH, grad_TH.contiguous(), group=shard.group)
        return part_TH, None
