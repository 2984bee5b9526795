"""Starts a job, on a cluster or here, and remembers it in the run folder."""

import datetime
import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from megatron_srpo.config.loader import with_overrides
from megatron_srpo.errors import LaunchError
from megatron_srpo.launch.code import packaged_commit
from megatron_srpo.launch.job import Job
from megatron_srpo.launch.local import check_local, run_local
from megatron_srpo.launch.logs import Follower
from megatron_srpo.launch.record import JobRecord, read_record, write_record
from megatron_srpo.launch.shell import Shell
from megatron_srpo.launch.slurm import batch_script, submit
from megatron_srpo.launch.watch import RunState, ended_here
from megatron_srpo.session.preflight import check_run


def check_job(job: Job) -> None:
    """Refuse here what ranks would refuse after a night in the queue, if the model can be seen.

    A self-play is checked by its command.

    Raises:
        ConfigError, ModelError: as :func:`~megatron_srpo.session.preflight.check_run`.
    """
    if job.self_play is not None:
        return
    model = Path(job.workdir, job.run.model.path)
    elsewhere = job.launch.ssh.host or job.launch.container.image
    if model.exists() or not elsewhere:
        check_run(with_overrides(job.run, [f"model.path={model}"]), job.launch.ranks)


def dry_run(job: Job, shell: Shell, say: Callable[[str], None]) -> str:
    """Return the batch script that :func:`start_on_slurm` would submit."""
    return batch_script(job, packaged_commit(job.launch.code, Path.cwd(), say), _dependencies(job, shell))


def start_on_slurm(job: Job, shell: Shell, say: Callable[[str], None]) -> JobRecord:
    """Submit a job and return at once.

    Args:
        shell: leads to where jobs are submitted.
        say: is given warnings.

    Raises:
        LaunchError: the code cannot travel, or Slurm refuses the job.
    """
    commit = packaged_commit(job.launch.code, Path.cwd(), say)
    submission = submit(job, commit, _dependencies(job, shell), shell)
    record = _record("slurm", submission.job_id, job, submission.experiment, commit)
    write_record(record, job.run_folder, shell)
    return record


def run_here(job: Job, show: Callable[[str], None]) -> RunState:
    """Run a job on this machine to its end.

    Args:
        show: is given the ranks' lines, from a thread, as they come.

    Raises:
        ConfigError: the job needs more than this machine.
        LaunchError: nemo-run is missing, or the run has not begun.
    """
    check_local(job)
    shell = Shell()
    follower = Follower(job.run_folder, shell, ("ranks",), show, tail=0)
    follower.look()  # skips what earlier launches into this folder have logged
    before = shell.read(job.run_folder / "status.json")

    def remember(experiment: str) -> None:
        write_record(_record("local", str(os.getpid()), job, experiment, None), job.run_folder, shell)

    run_local(job, shell, follower.look, remember)
    follower.look(last=True)
    if shell.read(job.run_folder / "status.json") == before:
        raise LaunchError(f"the run has not begun; {job.folder / 'logs'} says why")
    return ended_here(job.run_folder, shell)


def _dependencies(job: Job, shell: Shell) -> str:
    return ",".join(_dependency(item, job.workdir, shell) for item in job.launch.after)


def _dependency(item: str, workdir: PurePosixPath, shell: Shell) -> str:
    """Write a dependency as Slurm does: ``afterok:123``."""
    if item.isdigit():
        return f"afterok:{item}"
    if ":" in item:
        return item
    return f"afterok:{read_record(workdir / item, shell).job_id}"


def _record(executor: str, job_id: str, job: Job, experiment: str, commit: str | None) -> JobRecord:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return JobRecord(executor, job_id, job.name, experiment, commit or "", now)
