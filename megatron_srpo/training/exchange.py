"""Small exchanges between the ranks of one replica and between replicas."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_srpo import platform
from megatron_srpo.errors import UserError
from megatron_srpo.model.parallel import ProcessGroups
from megatron_srpo.training.microbatches import MicroBatch

T = TypeVar("T")


def from_last_stage(value: Tensor | None, shape: tuple[int, ...], groups: ProcessGroups) -> Tensor:
    """Give every pipeline stage the last stage's tensor (fp32, of a shape that all know)."""
    if groups.pp_size == 1:
        assert value is not None
        return value
    if not groups.is_last_stage:
        value = torch.empty(shape, dtype=torch.float32, device=platform.device())
    assert value is not None and value.shape == shape
    value = value.contiguous()
    dist.broadcast(value, src=dist.get_global_rank(groups.pp, groups.pp_size - 1), group=groups.pp)
    return value


def over_context(value: Tensor, batch: MicroBatch, groups: ProcessGroups) -> Tensor:
    """Join values [R, ...] of a micro-batch's response tokens from all context-parallel ranks: [W, ...]."""
    if batch.place_R is None:
        return value
    whole = value.new_zeros(sum(batch.lengths), *value.shape[1:])
    whole[batch.place_R] = value
    dist.all_reduce(whole, group=groups.cp)  # every token stands on one rank: the sum is the value
    return whole


def sum_over_tokens(value: Tensor, groups: ProcessGroups) -> Tensor:
    """Add up a tensor over all ranks that hold other tokens: data- and context-parallel ones."""
    return _sum_over(groups.dp_cp, value)


def sum_over_replicas(value: Tensor, groups: ProcessGroups) -> Tensor:
    """Add up a tensor over data-parallel replicas."""
    return _sum_over(groups.dp, value)


def _sum_over(group: dist.ProcessGroup, value: Tensor) -> Tensor:
    value = value.to(platform.device())
    if group.size() > 1:
        dist.all_reduce(value, group=group)
    return value


def largest_over_replicas(value: float, groups: ProcessGroups) -> float:
    """Return the largest of a number over data- and context-parallel ranks."""
    largest = torch.tensor(value, dtype=torch.float64, device=platform.device())
    if groups.dp_cp.size() > 1:
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=groups.dp_cp)
    return largest.item()


def largest_anywhere(value: int) -> int:
    """Return the largest of a small number over all ranks of the job. Collective."""
    if dist.get_world_size() == 1:
        return value
    largest = torch.tensor(value, device=platform.device())
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return int(largest.item())


def gather_over_replicas(value: T, groups: ProcessGroups) -> list[T]:
    """Collect one object per replica, in replica order, on every rank."""
    return _gather_over(groups.dp, value)


def everywhere(value: T) -> list[T]:
    """Collect one object per rank of the job, on every rank."""
    return _gather_over(dist.group.WORLD, value)


def _gather_over(group: dist.ProcessGroup | None, value: T) -> list[T]:
    gathered: list[Any] = [value] * dist.get_world_size(group)
    if len(gathered) > 1:
        dist.all_gather_object(gathered, value, group=group)
    return gathered


def from_first_rank(value: T) -> T:
    """Give every rank global rank 0's object."""
    if dist.get_world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def on_leader(action: Callable[[], T], groups: ProcessGroups) -> T:
    """Let a replica's leader compute something and give it to all ranks of the replica.

    Raises:
        UserError: on every rank, when the action raised it on the leader; nobody is left waiting.
    """
    if groups.replica.size() == 1:
        return action()
    box: list[Any] = [None, None]
    if groups.is_leader:
        try:
            box[0] = action()
        except UserError as error:
            box[1] = error
    dist.broadcast_object_list(box, src=dist.get_global_rank(groups.replica, 0), group=groups.replica)
    if box[1] is not None:
        raise box[1]
    return box[0]
