"""Run functions where Triton can be imported: in a process of their own that lives as long as the session.

Triton is not in the tests' environment, because Megatron-Core and SGLang take it for a sign of CUDA. It lies
in the folder `triton` of the virtual environment (`make install-kernels`), on the path of these processes
only. One kind interprets kernels on CPU tensors; the other compiles them, which needs no device either.
"""

import atexit
import importlib
import os
import pickle
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from functools import cache
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TRITON = Path(sys.prefix) / "triton"
TIMEOUT_S = 180.0


class WorkerFailure(AssertionError):
    """The function raised, or its process died or gave no answer; the message holds the traceback."""


class _Worker:
    """One process, with a pipe for jobs and answers. Pickled by hand: torch would share memory instead."""

    def __init__(self, variables: dict[str, str]) -> None:
        self._scratch = tempfile.TemporaryDirectory()
        self._connection, theirs = Pipe()
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": os.pathsep.join([str(TRITON), str(ROOT)]),
            "TRITON_CACHE_DIR": self._scratch.name,  # nothing compiled earlier
            **variables,
        }
        # NumPy warns of what kernels do on purpose: both sides of a `where` are computed.
        command = [sys.executable, "-W", "ignore::RuntimeWarning", "-m", "tests.ops.interpreter"]
        place = theirs.fileno()
        self._process = subprocess.Popen([*command, str(place)], env=environment, cwd=ROOT, pass_fds=[place])
        theirs.close()
        atexit.register(self.stop)

    def call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """Return what the function returns there; after a death or a timeout, the next call starts anew."""
        try:
            self._connection.send_bytes(pickle.dumps((function.__module__, function.__name__, arguments)))
            if not self._connection.poll(TIMEOUT_S):
                raise WorkerFailure(f"{function.__name__}: no answer within {TIMEOUT_S} s")
            good, value = pickle.loads(self._connection.recv_bytes())
        except (EOFError, ConnectionError, WorkerFailure) as error:
            self.stop()
            _worker.cache_clear()
            reason = str(error) or f"its process ended with status {self._process.returncode}"
            raise WorkerFailure(f"{function.__name__}: {reason}") from error
        if not good:
            raise WorkerFailure(value)
        return value

    def stop(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.kill()
        self._process.wait()
        self._scratch.cleanup()


@cache
def _worker(interpret: bool) -> _Worker:
    if not TRITON.is_dir():
        pytest.skip("needs Triton in a folder of its own: run `make install-kernels`")
    return _Worker({"TRITON_INTERPRET": "1" if interpret else "0"})


def run_interpreted(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call an importable top-level function in a process whose kernels run in Triton's interpreter.

    Arguments and result are pickled. Skips the test where Triton is not installed; raises WorkerFailure.
    """
    return _worker(True).call(function, arguments)


def run_compiling(function: Callable[..., Any], *arguments: Any) -> Any:
    """As :func:`run_interpreted`, in a process whose kernels can be compiled (and not run)."""
    return _worker(False).call(function, arguments)


def _serve(connection: Connection) -> None:
    """Worker: execute jobs until the pipe closes."""
    while True:
        try:
            module, name, arguments = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        try:
            answer = (True, getattr(importlib.import_module(module), name)(*arguments))
        except Exception:  # the boundary of the worker: whatever happened must reach the test
            answer = (False, traceback.format_exc())
        connection.send_bytes(pickle.dumps(answer))


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
