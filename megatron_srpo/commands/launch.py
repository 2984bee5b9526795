"""Launch a run on a Slurm cluster, or on this machine, and watch it.

The configuration is that of `megatron-srpo train` or `self-play`, or a recipe; the nodes, the account and the
environment come from --launch FILE and launch.key=value. One job holds the ranks (torchrun), the SGLang
servers and their router. Ctrl-C ends the watching, not a Slurm job: `megatron-srpo attach RUN` goes on.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath

from megatron_srpo.commands.common import add_config_arguments, describe_options
from megatron_srpo.commands.recipe_arguments import (
    OWN,
    add_recipe_arguments,
    launch_config,
    run_self_play_or_recipe,
)
from megatron_srpo.commands.self_play import check_runs
from megatron_srpo.config.launch import LaunchConfig
from megatron_srpo.config.self_play import SelfPlayConfig
from megatron_srpo.errors import ConfigError
from megatron_srpo.launch.job import Job, make_job
from megatron_srpo.launch.local import check_local, local_script
from megatron_srpo.launch.logs import Follower
from megatron_srpo.launch.record import JobRecord
from megatron_srpo.launch.shell import Shell
from megatron_srpo.launch.start import check_job, dry_run, run_here, start_on_slurm
from megatron_srpo.launch.watch import describe, wait_for_end


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``megatron-srpo launch``."""
    add_config_arguments(parser)
    add_recipe_arguments(parser)
    parser.add_argument("--executor", choices=("local", "slurm"), default="slurm", help="default slurm")
    parser.add_argument("--launch", metavar="YAML", help="nodes, cluster and environment (docs/slurm.md)")
    parser.add_argument("--dry-run", action="store_true", help="print the exact batch script; start nothing")
    parser.add_argument("--detach", action="store_true", help="submit, and do not watch")
    parser.add_argument("--options", action="store_true", help="list the launch.* keys and exit")


def run(arguments: argparse.Namespace) -> int:
    """Launch; return the run's exit status, or 0 once a detached job is submitted."""
    if arguments.options:
        print(describe_options("all", LaunchConfig, OWN))
        return 0
    launch, overrides = launch_config(arguments.launch, arguments.overrides)
    config = run_self_play_or_recipe(
        arguments,
        overrides,
        nodes=launch.nodes,
        gpus_per_node=launch.ranks_per_node,
        placement="disaggregated" if launch.rollout_nodes else "colocated",
    )
    job = make_job(config, launch, Path.cwd())
    check_job(job)
    if isinstance(config, SelfPlayConfig) and Path(config.solver.model.path).exists():
        check_runs(config, launch.ranks)
    if arguments.executor == "local":
        return _run_here(job, arguments)
    shell = Shell(launch.ssh.address)
    if arguments.dry_run:
        print(dry_run(job, shell, _tell), end="")
        return 0
    record = start_on_slurm(job, shell, _tell)
    _tell(f"submitted Slurm job {record.job_id}; run folder {job.run_folder}")
    if arguments.detach:
        _tell(f"watch it with: megatron-srpo attach {_place(job.run_folder, shell)}")
        return 0
    return watch(record, job.run_folder, shell)


def watch(record: JobRecord, run_folder: PurePosixPath, shell: Shell) -> int:
    """Follow a job to its end; Ctrl-C leaves it running."""
    follower = Follower(run_folder, shell, ("ranks", "batch"), partial(print, flush=True))
    try:
        state = wait_for_end(record, run_folder, shell, follower, _tell)
    except KeyboardInterrupt:
        place = _place(run_folder, shell)
        _tell(f"the job goes on; `megatron-srpo attach {place}` watches it, `megatron-srpo cancel` ends it")
        return 130
    _tell(describe(record, state, []))
    return state.exit_status


def _place(run_folder: PurePosixPath, shell: Shell) -> str:
    """Write how other commands are told which run is meant."""
    return f"--ssh {shell.address} {run_folder}" if shell.address else str(run_folder)


def _run_here(job: Job, arguments: argparse.Namespace) -> int:
    if arguments.detach:
        raise ConfigError("--detach with --executor local: it ends with this process; use nohup or tmux")
    if arguments.dry_run:
        check_local(job)
        print(local_script(job, "/dev/stdout"), end="")
        return 0
    # nemo-run's own words are kept from sys.stdout meanwhile, so the lines get the file itself.
    return run_here(job, partial(print, file=sys.stdout, flush=True)).exit_status


_tell: Callable[[str], None] = partial(print, file=sys.stderr, flush=True)
