"""Run a function on several real gloo ranks, in worker processes that live as long as the test session.

Importing torch and Megatron-Core takes several seconds per process, so the workers are started once and
each job makes (and destroys) its own default process group through a fresh file store.
"""

import atexit
import gc
import importlib
import multiprocessing as mp
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

DEFAULT_TIMEOUT_S = 180.0
#: Threads of a worker beyond which it is replaced. Some of Megatron-Core's groups outlive their job, with
#: three threads each; thousands of them slow the machine down.
MOST_THREADS = 100

#: How many modules were imported when they were last frozen.
_modules = 0


class RankFailure(AssertionError):
    """A rank raised, died or did not answer in time; the message holds every rank's traceback."""


def _serve(connection: Connection, path: str | None) -> None:
    """Worker: execute jobs until the pipe closes."""
    os.environ["OMP_NUM_THREADS"] = "1"
    if path is not None:
        sys.path.insert(0, path)
    import torch

    torch.set_num_threads(1)
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        connection.send(_run_job(*job))


def _run_job(module: str, name: str, rank: int, world: int, store: str, arguments: tuple) -> tuple[bool, Any]:
    import torch.distributed as dist

    try:
        function = getattr(importlib.import_module(module), name)
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
        try:
            result = function(rank, world, *arguments)
            # A rank that is done early must not tear its connections down while another still makes them.
            dist.barrier()
            return True, result
        finally:
            _destroy_groups()
    except BaseException:  # the boundary of the worker: whatever happened must reach the test
        return False, traceback.format_exc()


def _destroy_groups() -> None:
    """Tear down Megatron's groups (when a job made them) and the default group."""
    import torch.distributed as dist

    parallel_state = sys.modules.get("megatron.core.parallel_state")
    if parallel_state is not None:
        parallel_state.destroy_model_parallel()
    rotary = sys.modules.get("megatron.core.models.common.embeddings.rotary_pos_embedding")
    if rotary is not None:
        # It remembers its last calls, and with them models and their groups.
        rotary.RotaryEmbedding.forward.cache_clear()
    if dist.is_initialized():
        dist.destroy_process_group()
    # Trainers are full of reference cycles, and a gloo group that is still held keeps three threads: without
    # this, hundreds of groups with thousands of threads pile up in a worker.
    gc.collect()
    _freeze_imported()


def _freeze_imported() -> None:
    """Leave what stays for good, after imports, out of all later collections.

    Torch and Megatron-Core bring 400,000 objects; looking through them takes 0.5 s, as long as a small job.
    """
    global _modules
    if len(sys.modules) != _modules:
        _modules = len(sys.modules)
        gc.freeze()


def _threads(pid: int | None) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except OSError:  # not Linux
        return 0


class Pool:
    """Workers that live until the session ends.

    Args:
        path: a folder in which they look for packages first.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path
        atexit.register(self.stop)
        self.workers: list[tuple[mp.process.BaseProcess, Connection]] = []

    def grow(self, count: int) -> None:
        context = mp.get_context("spawn")
        while len(self.workers) < count:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, self.path), daemon=False)
            process.start()
            theirs.close()
            self.workers.append((process, ours))

    def stop(self) -> None:
        for process, connection in self.workers:
            connection.close()
            process.join(timeout=5)
            if process.is_alive():
                process.kill()
                process.join()
        self.workers = []

    def run(
        self, world: int, function: Callable, arguments: tuple, timeout: float = DEFAULT_TIMEOUT_S
    ) -> list[Any]:
        """Do what :func:`run_ranks` does."""
        self.grow(world)
        with tempfile.TemporaryDirectory() as folder:
            for rank, (_, connection) in enumerate(self.workers[:world]):
                store = os.path.join(folder, "store")
                connection.send((function.__module__, function.__name__, rank, world, store, arguments))
            answers = [self._answer(rank, timeout) for rank in range(world)]
        lost = [rank for rank, answer in enumerate(answers) if isinstance(answer, str)]
        if lost or any(_threads(process.pid) > MOST_THREADS for process, _ in self.workers):
            # Workers that have answered are done with the job, also where it failed, and wait for the next.
            self.stop()
        failures = [
            f"rank {rank}:\n{answer if isinstance(answer, str) else answer[1]}"
            for rank, answer in enumerate(answers)
            if isinstance(answer, str) or not answer[0]
        ]
        if failures:
            raise RankFailure("\n".join(failures))
        return [answer[1] for answer in answers]

    def _answer(self, rank: int, timeout: float) -> tuple[bool, Any] | str:
        """Return a worker's answer, or say why there is none."""
        process, connection = self.workers[rank]
        try:
            if connection.poll(timeout):
                return connection.recv()
        except (EOFError, ConnectionError):
            return f"the process ended with exit code {process.exitcode}"
        return f"no answer within {timeout} s"


_POOL = Pool()


def run_ranks(
    world: int, function: Callable[..., Any], *arguments: Any, timeout: float = DEFAULT_TIMEOUT_S
) -> list[Any]:
    """Call ``function(rank, world, *arguments)`` on ``world`` gloo ranks; return the results by rank.

    ``function`` must be importable (a top-level function of a test module). The default process group of
    size ``world`` is initialised before the call and destroyed after it.
    """
    return _POOL.run(world, function, arguments, timeout)
