"""One of the processes of :mod:`megatron_srpo.doctor.communication`.

``python -m megatron_srpo.doctor.rank BACKEND RANK WORLD STORE`` prints the milliseconds of one all-reduce.
"""

import datetime
import sys
import time

import torch
import torch.distributed as dist

# Longer than the parent waits: it is the parent that gives up, and says so.
TIMEOUT = datetime.timedelta(minutes=30)
ROUNDS = 20


def round_trip(backend: str, rank: int, world: int, store: str) -> float:
    """Join ``world`` >= 2 ranks, all-reduce, pass a message around; return milliseconds per all-reduce.

    Raises:
        RuntimeError: a collective returned a wrong value.
    """
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(device)
    dist.init_process_group(
        backend,
        init_method=f"file://{store}",
        rank=rank,
        world_size=world,
        timeout=TIMEOUT,
    )
    try:
        _require(_all_reduce(rank, device), world * (world + 1) / 2, "all-reduce")
        _require(_ring(rank, world, device), (rank - 1) % world, "send and receive")
        start = time.perf_counter()
        for _ in range(ROUNDS):
            _all_reduce(rank, device)
        return (time.perf_counter() - start) / ROUNDS * 1e3
    finally:
        dist.destroy_process_group()


def _all_reduce(rank: int, device: torch.device) -> float:
    """Sum 1, 2, … world over the ranks."""
    value = torch.tensor(float(rank + 1), device=device)
    dist.all_reduce(value)
    return value.item()


def _ring(rank: int, world: int, device: torch.device) -> float:
    """Send the own rank to the next one; return what came from the previous one."""
    received = torch.zeros((), device=device)
    operations = [
        dist.P2POp(dist.isend, torch.tensor(float(rank), device=device), (rank + 1) % world),
        dist.P2POp(dist.irecv, received, (rank - 1) % world),
    ]
    for request in dist.batch_isend_irecv(operations):
        request.wait()
    return received.item()


def _require(found: float, expected: float, operation: str) -> None:
    if found != expected:
        raise RuntimeError(f"{operation} returned {found}, expected {expected}")


def main(arguments: list[str]) -> None:
    """Be one rank; print the milliseconds of one all-reduce."""
    backend, rank, world, store = arguments
    print(f"{round_trip(backend, int(rank), int(world), store):.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
