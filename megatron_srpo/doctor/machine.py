"""What this machine offers: CUDA or CPU, threads, memory, disk."""

import os
import shutil
from pathlib import Path

import psutil
import torch

from megatron_srpo import platform
from megatron_srpo.doctor.types import Check
from megatron_srpo.model.precision import recipes_on
from megatron_srpo.ops.backend import kernels

GIB = 1024**3
# A rank of the carried model holds 0.5-1.3 GiB; two ranks and the reward processes fit into four.
MEMORY_COMFORT_GIB, MEMORY_LEAST_GIB = 4.0, 2.0
# Checkpoints of a small model; a real one needs 18 bytes per parameter and checkpoint kept.
DISK_COMFORT_GIB, DISK_LEAST_GIB = 5.0, 0.5


def check_accelerator() -> Check:
    """Say which device and collective backend a run uses."""
    if platform.has_cuda():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        nccl = ".".join(map(str, torch.cuda.nccl.version()))
        found = f"{torch.cuda.device_count()} x {', '.join(sorted(names))}"
        return Check("device", "ok", f"{found}; CUDA {torch.version.cuda}, NCCL {nccl}")
    build = f"torch {torch.__version__}"
    if shutil.which("nvidia-smi"):
        reason = "torch is a CPU build" if torch.version.cuda is None else "torch sees no CUDA device"
        return Check(
            "device",
            "warn",
            f"this machine has nvidia-smi, but {reason} ({build})",
            "see `nvidia-smi`; for a CUDA build of torch run `make clean install ACCELERATOR=gpu`",
        )
    return Check("device", "ok", f"CPU with gloo ({build})")


def check_loss_kernels() -> Check:
    """Say which implementation of the fused losses this machine uses."""
    used, reason = kernels()
    if used or not platform.has_cuda():
        return Check("loss kernels", "ok", reason)
    return Check("loss kernels", "warn", reason, "pip install triton, on a Hopper GPU or later")


def check_fp8() -> Check:
    """Say which FP8 recipes a run can use on this device, and what rules the others out."""
    found = recipes_on(platform.accelerator())
    able = [recipe for recipe, reason in found.items() if reason is None]
    reasons = list(dict.fromkeys(reason for reason in found.values() if reason is not None))
    return Check("FP8", "ok", "; ".join([", ".join(able) or "not available", *reasons]))


def check_threads(ranks_on_host: int) -> Check:
    """Compare the threads that the ranks would start with the cores there are."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    setting = platform.child_environment()["OMP_NUM_THREADS"]
    name, detail = "OMP_NUM_THREADS", f"{setting} per rank, {cores} cores"
    if not setting.isdigit() or int(setting) < 1:
        return Check(name, "fail", f"{setting!r} is not a positive number", "export OMP_NUM_THREADS=1")
    if platform.has_cuda() or int(setting) == 1 or int(setting) * ranks_on_host <= cores:
        return Check(name, "ok", detail)
    remedy = "export OMP_NUM_THREADS=1: ranks that share cores spin and slow one another down many times"
    return Check(name, "warn", f"{detail}, {ranks_on_host} ranks", remedy)


def check_memory() -> Check:
    """Compare the memory that is available now with what a small run needs."""
    available = psutil.virtual_memory().available / GIB
    return _grade(
        "memory",
        available,
        (MEMORY_LEAST_GIB, MEMORY_COMFORT_GIB),
        f"{available:.1f} GiB available",
        "end other programs, or use fewer ranks and smaller micro-batches",
    )


def check_disk(folder: str | Path) -> Check:
    """Compare the free space where runs are written with what checkpoints need."""
    existing = next(
        path for path in (Path(folder).resolve(), *Path(folder).resolve().parents) if path.exists()
    )
    free = psutil.disk_usage(str(existing)).free / GIB
    return _grade(
        "disk",
        free,
        (DISK_LEAST_GIB, DISK_COMFORT_GIB),
        f"{free:.1f} GiB free for {folder}",
        "free some space, write the run elsewhere, or keep fewer checkpoints",
    )


def _grade(name: str, value: float, bounds: tuple[float, float], detail: str, remedy: str) -> Check:
    least, comfort = bounds
    if value >= comfort:
        return Check(name, "ok", detail)
    return Check(name, "warn" if value >= least else "fail", f"{detail}; {comfort:.0f} GiB advised", remedy)
