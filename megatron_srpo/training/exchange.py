"""Small exchanges between the ranks of one replica and between replicas."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_srpo import platform
from megatron_srpo.model.parallel import ProcessGroups


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


def sum_over_replicas(value: Tensor, groups: ProcessGroups) -> Tensor:
    """Add up a tensor over data-parallel replicas."""
    value = value.to(platform.device())
    if groups.dp_size > 1:
        dist.all_reduce(value, group=groups.dp)
    return value


def gather_over_replicas(value: Any, groups: ProcessGroups) -> list[Any]:
    """Collect one object per replica, in replica order, on every rank."""
    if groups.dp_size == 1:
        return [value]
    gathered: list[Any] = [None] * groups.dp_size
    dist.all_gather_object(gathered, value, group=groups.dp)
    return gathered


def from_leader(value: Any, groups: ProcessGroups) -> Any:
    """Give every rank of a replica its leader's object."""
    if groups.replica.size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=dist.get_global_rank(groups.replica, 0), group=groups.replica)
    return box[0]
