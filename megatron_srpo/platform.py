"""Everything that differs between CPU and CUDA, gloo and NCCL. The only reader of environment variables.

On a machine with CUDA this module changes nothing in torch or Megatron-Core. On a machine without it,
:func:`prepare_megatron` makes the unmodified ``megatron-core`` package usable on CPU tensors
(see :mod:`megatron_srpo.megatron_on_cpu`).
"""

import ctypes
import datetime
import gc
import importlib.metadata
import importlib.util
import os
import resource
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path

import torch
import torch.distributed as dist

_API_KEY = "MEGATRON_SRPO_SGLANG_API_KEY"
#: What torchrun sets for its own processes.
_RANK_VARIABLES = frozenset(
    f"{place}{what}" for place in ("", "LOCAL_", "GROUP_", "ROLE_") for what in ("RANK", "WORLD_SIZE", "NAME")
) | {"MASTER_ADDR", "MASTER_PORT"}


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


def job_name() -> str:
    """Name the Slurm job that this process belongs to and how often it was restarted: ``1234_0``.

    Empty outside Slurm.
    """
    job = os.environ.get("SLURM_JOB_ID", "")
    return f"{job}_{os.environ.get('SLURM_RESTART_COUNT', '0')}" if job else ""


def is_monitored() -> bool:
    """Say whether nvidia-resiliency-ext's ft_launcher started this rank and waits for its signs of life."""
    return "FT_RANK_MONITOR_IPC_SOCKET" in os.environ


def child_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for a child process: this one, one OpenMP thread, and ``extra``.

    One thread per process: two OpenMP threads on a busy two-core machine are many times slower than two
    single-threaded processes.
    """
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    # Megatron-Core asks for this with tensor parallelism on GPUs before Blackwell; harmless elsewhere.
    environment.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    return {**environment, **(extra or {})}


@contextmanager
def deaf_children() -> Iterator[None]:
    """Keep from what is started in this block the signals that Slurm sends to every process of a job.

    The first save of a checkpoint, for one, starts a process that all saves need, and SIGUSR1 would kill it:
    just when the run has been asked to stop and is about to save. This process hears what came meanwhile at
    the block's end.
    """
    signals = {signal.SIGTERM, signal.SIGUSR1}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # starting the tracker unblocks SIGTERM
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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


@dataclass(frozen=True)
class Accelerator:
    """What decides which kernels can run here.

    Attributes:
        capability: compute capability of this process's CUDA device; None without CUDA.
        cuda: version of CUDA that torch was built with.
        transformer_engine: version of the package whose PyTorch part is installed; None without it.
    """

    capability: tuple[int, int] | None = None
    cuda: tuple[int, int] | None = None
    transformer_engine: str | None = None


def accelerator() -> Accelerator:
    """Look at this process's device and kernels. With CUDA, this takes memory of the device (a context)."""
    if not has_cuda():
        return Accelerator()
    major, minor = (torch.version.cuda or "0.0").split(".")[:2]
    capability = torch.cuda.get_device_capability(device())
    return Accelerator(capability, (int(major), int(minor)), transformer_engine_version())


def transformer_engine_version() -> str | None:
    """Return the version of Transformer Engine whose PyTorch part is installed, without importing it.

    From the package index that part is a distribution of its own; built from source, it is not.
    """
    spec = importlib.util.find_spec("transformer_engine")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations)))
    places = (folder, folder.parent, folder / "wheel_lib")
    if not any(any(place.glob("transformer_engine_torch*.so")) for place in places):
        return None
    for name in ("transformer-engine-torch", "transformer-engine"):
        with suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return None


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a tensor to host memory, page-locked where that makes copies to a device faster."""
    host = torch.empty_like(tensor, device="cpu", pin_memory=has_cuda())
    return host.copy_(tensor)


def is_on_host(tensor: torch.Tensor) -> bool:
    """Say whether a tensor lies where :func:`to_host` puts it."""
    return tensor.device.type == "cpu" and (not has_cuda() or tensor.is_pinned())


def give_back_memory() -> None:
    """Give the device what this process's allocator keeps of earlier work, for other processes to take."""
    if has_cuda():
        torch.cuda.empty_cache()


def backend() -> str:
    """Name the collective backend: NCCL with CUDA, gloo without."""
    return "nccl" if has_cuda() else "gloo"


def prepare_megatron() -> None:
    """Make ``import megatron.core`` usable on this machine. Call it before that import; idempotent."""
    if not has_cuda():
        from megatron_srpo.megatron_on_cpu import install

        install()


def prepare_sglang() -> None:
    """Make ``import sglang`` usable on this machine. To be called before that import, in each process."""
    if not has_cuda():
        from megatron_srpo.sglang_on_cpu import install

        install()


def sglang_plugin() -> None:
    """Entry point of SGLang's plugin interface; does nothing but in servers that run without CUDA.

    SGLang calls it in each of its processes on this machine, also in those that this package did not start.
    """
    sglang_on_cpu = sys.modules.get("megatron_srpo.sglang_on_cpu")
    if sglang_on_cpu is not None and sglang_on_cpu.is_installed():
        from megatron_srpo.sglang_on_cpu.plugin import register

        register()


def sglang_environment(api_key: str | None, tensor_parallel: int) -> dict[str, str]:
    """Return the environment in which an SGLang server is started.

    What ``torchrun`` tells the trainer is left out: SGLang would take the trainer's rank for its own.

    Args:
        api_key: handed over here because any user of the machine can read a command line.
        tensor_parallel: ranks of the server.
    """
    environment = {
        name: value
        for name, value in child_environment().items()
        # With torchrun's agent store, SGLang's own ranks would wait for one that nobody serves.
        if name not in _RANK_VARIABLES and not name.startswith("TORCHELASTIC_")
    }
    if api_key:
        environment[_API_KEY] = api_key
    if not has_cuda():
        environment["SGLANG_USE_CPU_ENGINE"] = "1"
        # SGLang would compile its choice of experts with the machine's C++ compiler while requests wait.
        environment.setdefault("TORCHDYNAMO_DISABLE", "1")
        environment.setdefault("SGLANG_EXTERNAL_MODEL_PACKAGE", "megatron_srpo.sglang_on_cpu.models")
        if tensor_parallel > 1:
            environment.setdefault("SGLANG_CPU_OMP_THREADS_BIND", _cores(tensor_parallel))
    return environment


def take_sglang_api_key() -> str | None:
    """Read and remove the key that :func:`sglang_environment` left for this process."""
    return os.environ.pop(_API_KEY, None)


def _cores(ranks: int) -> str:
    """Name one processor core per rank, as SGLang asks for when ranks outnumber NUMA nodes: ``0|1``."""
    available = sorted(os.sched_getaffinity(0))
    return "|".join(str(available[rank % len(available)]) for rank in range(ranks))


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


class MemoryMeter:
    """Measures how far a piece of work raises this process's memory: CUDA allocations, or resident memory.

    Making one begins the measurement, and forgets earlier peaks (:func:`peak_memory_bytes`). On a CPU, memory
    that the allocator had kept from earlier work is not counted: small work may show nothing.

    Args:
        give_back: have the allocator give back first what it kept.
        on_device: measure CUDA allocations; by default where there is CUDA.
    """

    def __init__(self, give_back: bool = False, on_device: bool | None = None) -> None:
        self._on_device = has_cuda() if on_device is None else on_device
        self._known = True
        if give_back:
            gc.collect()
        if self._on_device:
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
            return
        if give_back:
            with suppress(AttributeError, OSError):  # not the GNU C library
                ctypes.CDLL(None).malloc_trim(0)
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux: the peak becomes today's
            self._before = _process_status("VmRSS")
        except OSError:
            self._known = False

    def rise(self) -> int | None:
        """Return the bytes by which the peak has exceeded the beginning; None where the system cannot say."""
        if not self._known:
            return None
        peak = torch.cuda.max_memory_allocated() if self._on_device else _process_status("VmHWM")
        return max(0, peak - self._before)


def _process_status(field: str) -> int:
    """Read a number of KiB from this process's status, in bytes."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.split(f"{field}:")[1].split()[0]) << 10


def console_is_terminal() -> bool:
    """Say whether standard output is an interactive terminal."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
