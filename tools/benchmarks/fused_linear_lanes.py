"""Where a variant runs: on a CPU in a process of its own, on a GPU in this one.

A process of its own shows what a variant takes of memory whatever the others did before. It is forked, so
that all share one copy of the inputs (a gigabyte or more), and it lives through all rounds, so that what was
compiled stays compiled. A CUDA context survives no fork, and its allocator counts exactly.
"""

import gc
import multiprocessing
import os
import resource
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import torch

from tools.benchmarks.fused_linear_variants import Unavailable
from tools.benchmarks.lane import BenchmarkError

Commands = Mapping[str, Callable[[], Any]]
"""What a lane can be told to do. Results are plain data and arrays."""
Maker = Callable[[], Commands]

_TIMEOUT_S = 900.0
_WATCH_S = 5.0
#: Share of the free memory that one process may take; a plain loss may want more than there is.
_SHARE = 0.9
_LINE = 300


class LaneFailed(BenchmarkError):
    """A variant that cannot run here, or failed; the text says why."""


class Lane(Protocol):
    """A place that does what it is told."""

    def call(self, command: str) -> Any:
        """Run a command; LaneFailed if it fails or the variant is not available."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


def open_lane(make: Maker, device: str, threads: int) -> Lane:
    """Return a lane for a device."""
    return LocalLane(make) if device == "cuda" else ForkedLane(make, threads)


def _answer(make: Maker, made: list[Commands], command: str) -> tuple[bool, Any]:
    """Return (True, the result) or (False, the reason); what is needed is made at the first command."""
    try:
        if not made:
            made.append(make())
        return True, made[0][command]()
    except Unavailable as error:
        return False, str(error)
    except Exception as error:  # a boundary: whatever a rival raises costs its row, not the whole run
        return False, " ".join(f"{type(error).__name__}: {error}".split())[:_LINE]


class LocalLane:
    """In this process."""

    def __init__(self, make: Maker) -> None:
        self._make, self._made = make, list[Commands]()

    def call(self, command: str) -> Any:
        """Run a command."""
        ok, found = _answer(self._make, self._made, command)
        if not ok:
            # The traceback, and with it the tensors of the failed call, are gone by now.
            gc.collect()
            torch.cuda.empty_cache()
            raise LaneFailed(found)
        return found

    def close(self) -> None:
        """Forget the variant."""
        self._made.clear()
        gc.collect()
        torch.cuda.empty_cache()


class ForkedLane:
    """In a forked process. The parent must not have used more than one thread of OpenMP by then."""

    def __init__(self, make: Maker, threads: int) -> None:
        context = multiprocessing.get_context("fork")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, threads), daemon=True)
        self._process.start()
        theirs.close()

    def call(self, command: str) -> Any:
        """Send a command and wait for the result."""
        try:
            self._connection.send(command)
            if not self._connection.poll(_TIMEOUT_S):
                raise LaneFailed(f"said nothing for {_TIMEOUT_S:.0f} s")
            ok, found = self._connection.recv()
        except (EOFError, ConnectionError) as error:
            self._process.join()
            raise LaneFailed(f"its process ended with status {self._process.exitcode}") from error
        if not ok:
            raise LaneFailed(found)
        return found

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.kill()
        self._process.join()


def _serve(connection: Connection, make: Maker, threads: int) -> None:
    parent = os.getppid()
    torch.set_num_threads(threads)
    _limit_memory()
    made: list[Commands] = []
    # Lanes forked later hold this connection's other end too, so its end says nothing about the parent.
    while os.getppid() == parent:
        if connection.poll(_WATCH_S):
            connection.send(_answer(make, made, connection.recv()))


def _limit_memory() -> None:
    """Let an allocation that does not fit fail, before the kernel ends a process of its own choice."""
    have = {**_kilobytes("/proc/meminfo"), **_kilobytes("/proc/self/status")}
    limit = int(1024 * (have["VmData"] + _SHARE * have["MemAvailable"]))
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def _kilobytes(path: str) -> dict[str, int]:
    lines = (line.split() for line in Path(path).read_text(encoding="ascii").splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in lines if words[-1] == "kB"}
