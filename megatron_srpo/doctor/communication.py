"""Do two processes on this machine reach each other through the collective backend?"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from megatron_srpo import platform
from megatron_srpo.doctor.types import Check

TIMEOUT_S = 120.0
RANK_MODULE = "megatron_srpo.doctor.rank"


def check_communication(timeout_s: float = TIMEOUT_S) -> Check:
    """All-reduce and exchange messages between two freshly started ranks.

    One GPU cannot hold two NCCL ranks, so with a single device the two ranks use gloo.
    """
    two_devices = platform.has_cuda() and torch.cuda.device_count() >= 2
    backend = "nccl" if two_devices else "gloo"
    name = f"{backend} between 2 ranks"
    answers = start_ranks(backend, 2, timeout_s)
    failures = [text for good, text in answers if not good]
    if not failures:
        return Check(name, "ok", f"all-reduce of 4 bytes in {answers[0][1]} ms")
    return Check(name, "fail", _last_line(failures[0]), _remedy(backend))


def start_ranks(backend: str, world: int, timeout_s: float) -> list[tuple[bool, str]]:
    """Run ``world`` ranks to their end; return per rank (succeeded, output)."""
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder, "store"))
        processes = [_start(backend, rank, world, store) for rank in range(world)]
        deadline = time.monotonic() + timeout_s
        try:
            return [_finish(process, deadline, timeout_s) for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()


def _start(backend: str, rank: int, world: int, store: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", RANK_MODULE, backend, str(rank), str(world), store]
    return subprocess.Popen(
        command,
        env=platform.child_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _finish(process: subprocess.Popen[str], deadline: float, timeout_s: float) -> tuple[bool, str]:
    try:
        output, errors = process.communicate(timeout=max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return False, f"no answer within {timeout_s:.0f} s"
    return (True, output.strip()) if process.returncode == 0 else (False, errors.strip())


def _last_line(text: str) -> str:
    return text.splitlines()[-1] if text else "a rank ended without a message"


def _remedy(backend: str) -> str:
    if backend == "nccl":
        return "run again with NCCL_DEBUG=INFO and read the first error"
    return "check that this host's name resolves, or export GLOO_SOCKET_IFNAME=lo for runs on one host"
