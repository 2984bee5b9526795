"""nemo-run, imported when it is needed: it takes seconds, and not every installation has it."""

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Iterator
from types import ModuleType

from megatron_srpo.errors import LaunchError


def nemo_run() -> ModuleType:
    """Return the package.

    Raises:
        LaunchError: it cannot be imported; says what to install.
    """
    try:
        return importlib.import_module("nemo_run")
    except ModuleNotFoundError as missing:
        raise LaunchError(
            f"nemo-run cannot be imported ({missing}): pip install 'megatron-srpo[launch]', or make "
            "install-launch"
        ) from missing


@contextlib.contextmanager
def quietly(said: io.StringIO) -> Iterator[None]:
    """Keep what nemo-run prints: it names commands of its own, which misread a job that is requeued.

    It also reads standard input, for the commands that it runs, which is not meant for them.
    """
    given = sys.stdin
    with (
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
        open(os.devnull, encoding="utf-8") as nothing,
    ):
        sys.stdin = nothing
        try:
            yield
        finally:
            sys.stdin = given
