"""Commands on the machine itself: run, start in the background, wait, kill."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from tools.virtual_slurm.settings import VirtualSlurmError

Command = Sequence[str | Path]


def call(*command: str | Path) -> str:
    """Run a command to its end and return what it printed.

    Raises:
        VirtualSlurmError: with its output, when it fails; when there is no such program.
    """
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except FileNotFoundError:
        raise VirtualSlurmError(f"no program {command[0]!r} on this machine") from None
    if done.returncode:
        words = " ".join(map(str, command))
        raise VirtualSlurmError(f"status {done.returncode} from: {words}\n{done.stdout.strip()}")
    return done.stdout


def start(command: Command, log: Path) -> None:
    """Start a command that outlives this process, with its output in ``log``."""
    with log.open("a") as output:
        subprocess.run(
            ["setsid", "--fork", *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=True,
        )


def succeeds(command: Command) -> bool:
    """Whether a command ends with status 0."""
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def wait_until(true: Callable[[], bool], what: str, seconds: float) -> None:
    """Ask every fifth of a second.

    Raises:
        VirtualSlurmError: when it took longer than ``seconds``.
    """
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise VirtualSlurmError(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(0.2)


def kill_all(processes: Iterable[int]) -> None:
    """Kill processes at once; those that are gone already do not matter."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def start_time(process: int) -> int:
    """Return when a process started (kernel ticks since boot), 0 when there is none of this number."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(stat.rpartition(")")[2].split()[19])
