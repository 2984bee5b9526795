"""The links under the transports of bench_weight_sync, each with nothing but one bucket on it.

Two processes run ``python -m tools.benchmarks.weight_sync_links SPEC``; rank 0 writes GB/s by link as JSON.

* shared memory: a copy into memory as the tensor transport allocates it (device memory on CUDA);
* broadcast: one, from one process to another, with the platform's backend;
* disk: writing a safetensors file and reading it again, one after the other, as a push does.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from megatron_srpo import platform
from megatron_srpo.weights.transports.tensor import SharedBucketMemory

REPEATS = 5
TIMEOUT_S = 120.0


def seconds_of(action: Callable[[], object], repeats: int = REPEATS) -> float:
    """Return the median seconds of ``action``, after one call that is not counted."""
    action()
    found = []
    for _ in range(repeats):
        platform.synchronize()
        begun = time.perf_counter()
        action()
        platform.synchronize()
        found.append(time.perf_counter() - begun)
    return statistics.median(found)


def copy_seconds(source: torch.Tensor) -> float:
    """Time a copy of ``source``, a flat tensor of bytes, into memory that other processes can map."""
    target = SharedBucketMemory(source.dtype, source.device).allocate(source.numel())
    return seconds_of(lambda: target.copy_(source))


def broadcast_seconds(flat: torch.Tensor) -> float:
    """Time a broadcast of ``flat``. Collective; the barrier waits for the receiver."""

    def send() -> None:
        dist.broadcast(flat, src=0)
        dist.barrier()

    return seconds_of(send)


def disk_seconds(flat: torch.Tensor, folder: Path) -> float:
    """Time writing ``flat`` to a new file in ``folder`` and reading all of it."""
    folder.mkdir(parents=True, exist_ok=True)
    file, host = folder / "link.safetensors", flat.cpu()

    def there_and_back() -> None:
        file.unlink(missing_ok=True)
        save_file({"bucket": host}, file)
        load_file(file)["bucket"].clone()  # the file is mapped: only a copy reads it

    try:
        return seconds_of(there_and_back)
    finally:
        file.unlink(missing_ok=True)


def measure(bucket_bytes: int, folder: Path) -> dict[str, float]:
    """Return GB/s by link on rank 0. Collective; a single process has no broadcast."""
    flat = torch.randint(0, 256, (bucket_bytes,), dtype=torch.uint8, device=platform.device())
    found: dict[str, float] = {}
    if dist.get_world_size() > 1:
        found["broadcast"] = broadcast_seconds(flat)
    if dist.get_rank() == 0:  # the other process must be silent meanwhile, and waits at the next barrier
        found["shared memory"] = copy_seconds(flat)
        found["disk"] = disk_seconds(flat, folder)
    dist.barrier()
    return {name: bucket_bytes / 1e9 / seconds for name, seconds in found.items()}


def main(path: str) -> None:
    """Measure what the spec at ``path`` says and write the result where it says."""
    spec = json.loads(Path(path).read_text(encoding="utf-8"))
    platform.init_distributed(TIMEOUT_S)
    found = measure(spec["bucket_bytes"], Path(spec["folder"]))
    if dist.get_rank() == 0:
        Path(spec["result"]).write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
