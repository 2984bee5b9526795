"""The process group of one trainer rank and the ranks of its servers, beside the trainer's own groups."""

import datetime
import socket
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from megatron_srpo.errors import EngineError


def free_port(address: str) -> int:
    """Return a port that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def join_as_sender(
    address: str, port: int, world_size: int, name: str, backend: str, timeout_s: float
) -> dist.ProcessGroup:
    """Join as rank 0, serving the rendezvous; blocks until all others have joined.

    ``torch.distributed`` makes further groups only out of the members of the default group. SGLang's servers
    are not among them and join through its helper, so both sides must build the group alike: the same
    rendezvous, key prefix and group name (SGLang 0.5.23, ``utils/common.py::init_custom_process_group``).

    Raises:
        EngineError: not everyone came within ``timeout_s``.
    """
    timeout = datetime.timedelta(seconds=timeout_s)
    try:
        # Not dist.rendezvous(): under torchrun it would look for torchrun's own store at this address.
        store = dist.TCPStore(address, port, world_size, is_master=True, timeout=timeout, multi_tenant=True)
        group, _ = distributed_c10d._new_process_group_helper(
            world_size,
            0,
            [],
            dist.Backend(backend),
            dist.PrefixStore(name, store),
            group_name=distributed_c10d.GroupName(name),
            timeout=timeout,
        )
    except (RuntimeError, dist.DistError) as error:
        raise EngineError(
            f"cannot form the group {name} of {world_size} ranks at {address}:{port} within "
            f"{timeout_s:.0f} s: {error}. Servers must reach this address (rollout.sync.address)"
        ) from error
    distributed_c10d._world.pg_group_ranks[group] = {rank: rank for rank in range(world_size)}
    return group


def broadcast(flat: torch.Tensor, group: dist.ProcessGroup) -> dist.Work:
    """Start to send the bytes of ``flat``."""
    work: Any = dist.broadcast(flat.view(torch.uint8), group_src=0, group=group, async_op=True)
    return work


def leave(group: dist.ProcessGroup) -> None:
    """Destroy the group on this side, which also fails whatever the others still wait for."""
    dist.destroy_process_group(group)


def local_address(urls: Sequence[str]) -> str:
    """Return the address at which servers at ``urls`` reach this process: loopback if all listen there.

    Raises:
        EngineError: there is no way to a server.
    """
    hosts = {urlsplit(url).hostname or "" for url in urls}
    far = sorted(hosts - {"127.0.0.1", "localhost", "::1"})
    if not far:
        return "127.0.0.1"
    # The host's own name often leads to a loopback address; the way to a server starts where it is reached.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((far[0], 9))  # sends nothing: it only chooses the way
        except OSError as error:
            raise EngineError(
                f"no way to the server {far[0]} ({error}); set rollout.sync.address to an address of this "
                "machine that it reaches"
            ) from error
        return str(probe.getsockname()[0])
