"""What can be done with a launched run from another shell: status, logs, attach, cancel."""

import argparse
import sys
import time
from functools import partial
from pathlib import Path, PurePosixPath

from megatron_srpo.commands.launch import watch
from megatron_srpo.launch.logs import ROLES, Follower
from megatron_srpo.launch.record import JobRecord, read_record
from megatron_srpo.launch.shell import Shell
from megatron_srpo.launch.watch import describe, run_state, server_urls

_CANCEL_LOOKS, _CANCEL_LOOK_S = 60, 2.0
_FOLLOW_S = 2.0


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the run that a command is about."""
    parser.add_argument("run_folder", metavar="RUN", help="folder of the run (its output_dir)")
    parser.add_argument("--ssh", metavar="USER@HOST", default="", help="the login node of its cluster")


def add_logs_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``megatron-srpo logs``."""
    add_run_arguments(parser)
    parser.add_argument("--role", choices=ROLES, action="append", help="only these; default: all")
    parser.add_argument("--follow", action="store_true", help="go on until the run has ended")
    parser.add_argument("--tail", type=int, metavar="N", help="of each log, the last N lines at first")


def add_cancel_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``megatron-srpo cancel``."""
    add_run_arguments(parser)
    parser.add_argument("--save", action="store_true", help="let it finish its step and save first")


def status(arguments: argparse.Namespace) -> int:
    """Print the state of a run; the exit status is not 0 for one that failed."""
    folder, shell, record = _run_of(arguments)
    state = run_state(record, folder, shell)
    print(describe(record, state, server_urls(folder, shell)))
    return state.exit_status if state.failed else 0


def logs(arguments: argparse.Namespace) -> int:
    """Print the logs of a run."""
    folder, shell, record = _run_of(arguments)
    follower = Follower(
        folder, shell, arguments.role or ROLES, partial(print, flush=True), tail=arguments.tail
    )
    ended = not arguments.follow
    while True:
        ended = ended or run_state(record, folder, shell).job.ended
        follower.look(last=ended)
        if ended:
            return 0
        time.sleep(_FOLLOW_S)


def attach(arguments: argparse.Namespace) -> int:
    """Follow a run to its end and return its exit status."""
    folder, shell, record = _run_of(arguments)
    return watch(record, folder, shell)


def cancel(arguments: argparse.Namespace) -> int:
    """End a run; it is not requeued."""
    folder, shell, record = _run_of(arguments)
    state = run_state(record, folder, shell)
    if state.job.ended:
        print(describe(record, state, []))
        return 0
    # The job looks for this before it gives itself back to the queue.
    shell.write(folder / "launch" / "cancelled", "")
    if arguments.save:
        shell.write(folder / "stop", "")
    elif record.executor == "slurm":
        shell.do(["scancel", record.job_id])
    else:
        shell.do(["kill", "-INT", record.job_id])
    for _ in range(_CANCEL_LOOKS):
        state = run_state(record, folder, shell)
        if state.job.ended:
            print(describe(record, state, []))
            return 0
        time.sleep(_CANCEL_LOOK_S)
    print(f"{record.name} was asked to end, and is still {state.job.name}", file=sys.stderr)
    return 1


def _run_of(arguments: argparse.Namespace) -> tuple[PurePosixPath, Shell, JobRecord]:
    shell = Shell(arguments.ssh)
    given = arguments.run_folder if arguments.ssh else Path(arguments.run_folder).absolute()
    folder = PurePosixPath(given)
    return folder, shell, read_record(folder, shell)
