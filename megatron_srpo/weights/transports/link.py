"""How fast the bare link is that a transport uses, measured once in the run that uses it."""

import time
from collections.abc import Callable
from pathlib import Path

import torch

from megatron_srpo import platform

PROBE_BYTES = 32 << 20
_ATTEMPTS = 2


def best_rate(send: Callable[[], None], size: int) -> float:
    """Return bytes per second of the faster of two attempts to ``send`` so many bytes."""
    seconds = []
    for _ in range(_ATTEMPTS):
        start = time.perf_counter()
        send()
        seconds.append(time.perf_counter() - start)
    return size / max(min(seconds), 1e-9)


def copy_rate(target: torch.Tensor) -> float:
    """Measure a copy into ``target``: what shared memory or the device's memory takes."""
    source = torch.zeros_like(target)

    def send() -> None:
        target.copy_(source)
        platform.synchronize()

    return best_rate(send, target.nbytes)


def disk_rate(folder: Path) -> float:
    """Measure writing a file into ``folder`` and reading it again, through whatever caches there are."""
    path, content = folder / "link-probe", bytes(PROBE_BYTES)

    def send() -> None:
        path.write_bytes(content)
        path.read_bytes()

    try:
        return best_rate(send, PROBE_BYTES)
    finally:
        path.unlink(missing_ok=True)
