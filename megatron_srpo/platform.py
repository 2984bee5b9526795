"""Everything that differs between CPU and CUDA, gloo and NCCL. The only reader of environment variables.

On a machine with CUDA this module changes nothing in torch or Megatron-Core. On a machine without it,
:func:`prepare_megatron` makes the unmodified ``megatron-core`` package usable on CPU tensors
(see :mod:`megatron_srpo.megatron_on_cpu`).
"""

import datetime
import os
import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class RankEnvironment:
    """What ``torchrun`` tells a process about its place: global rank, world size and rank on its host."""

    rank: int
    world_size: int
    local_rank: int


def rank_environment() -> RankEnvironment | None:
    """Read the place given by ``torchrun``; ``None`` for a process that no launcher started."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return None
    local = os.environ.get("LOCAL_RANK", "0")
    return RankEnvironment(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(local))


def child_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for a child process: this one, one OpenMP thread, and ``extra``.

    One thread per process: two OpenMP threads on a busy two-core machine are many times slower than two
    single-threaded processes.
    """
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    # Megatron-Core asks for this with tensor parallelism on GPUs before Blackwell; harmless elsewhere.
    environment.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    return {**environment, **(extra or {})}


def limit_threads() -> None:
    """Give this process's future children one OpenMP thread each, unless the user has chosen otherwise."""
    os.environ.update(child_environment())


def has_cuda() -> bool:
    """Say whether this process can use a CUDA device."""
    return torch.cuda.is_available()


def device() -> torch.device:
    """Return the device on which this process computes."""
    if not has_cuda():
        return torch.device("cpu")
    place = rank_environment()
    return torch.device("cuda", place.local_rank if place else torch.cuda.current_device())


def backend() -> str:
    """Name the collective backend: NCCL with CUDA, gloo without."""
    return "nccl" if has_cuda() else "gloo"


def prepare_megatron() -> None:
    """Make ``import megatron.core`` usable on this machine. Call it before that import; idempotent."""
    if not has_cuda():
        from megatron_srpo.megatron_on_cpu import install

        install()


def init_distributed(timeout_s: float) -> RankEnvironment:
    """Join the default process group and return this process's place.

    A process that no launcher started becomes a group of one, so that a single-rank run needs no torchrun.
    """
    place = rank_environment() or RankEnvironment(0, 1, 0)
    if has_cuda():
        torch.cuda.set_device(place.local_rank)
    else:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    alone = rank_environment() is None
    dist.init_process_group(
        backend(),
        rank=place.rank,
        world_size=place.world_size,
        store=dist.HashStore() if alone else None,
        timeout=datetime.timedelta(seconds=timeout_s),
    )
    return place


def synchronize() -> None:
    """Wait for the device, so that a clock read after it measures finished work. A no-op on CPU."""
    if has_cuda():
        torch.cuda.synchronize()


def peak_memory_bytes() -> int:
    """Return the peak memory of this process: CUDA allocations, or resident memory on CPU."""
    if has_cuda():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def console_is_terminal() -> bool:
    """Say whether standard output is an interactive terminal."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
