"""Which copy of the model gives a server its weights."""

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist

from megatron_srpo.model.parallel import ProcessGroups
from megatron_srpo.rollout.sglang.endpoint import Endpoint, on_this_host


def server_owners(endpoints: Sequence[Endpoint], groups: ProcessGroups) -> list[int]:
    """Return, for each server, the index of the copy that looks after it. A collective over the job.

    A copy that lies wholly on the server's machine comes first: device memory is handed over there, and ranks
    cannot share a device with a server in one group of NCCL. Otherwise servers are dealt out in turn.
    """
    return _deal(*_copies_near(endpoints, groups))


def all_have_a_copy_near(endpoints: Sequence[Endpoint], groups: ProcessGroups) -> bool:
    """Say whether every server has a whole copy of the model on its machine. A collective over the job."""
    near, _ = _copies_near(endpoints, groups)
    return all(near)


def _copies_near(endpoints: Sequence[Endpoint], groups: ProcessGroups) -> tuple[list[list[int]], int]:
    """Return, for each server, the copies on its machine; and the number of copies."""
    own = (groups.copy_index, groups.sends, [on_this_host(endpoint.url) for endpoint in endpoints])
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, own)
    near = [
        [
            copy
            for copy in range(groups.copies)
            if all(here[place] for index, sends, here in told if sends and index == copy)
        ]
        for place in range(len(endpoints))
    ]
    return near, groups.copies


def _deal(near: Sequence[Sequence[int]], copies: int) -> list[int]:
    """Give each server to one of the copies near it, or to any: to the one that has the fewest so far."""
    load = [0] * copies
    owners = []
    for choice in near:
        owner = min(choice or range(copies), key=lambda copy: (load[copy], copy))
        load[owner] += 1
        owners.append(owner)
    return owners
