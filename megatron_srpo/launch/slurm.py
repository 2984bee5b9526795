"""Submits a run to Slurm through nemo-run, which packages code, and writes and submits the batch script."""

import contextlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_srpo.errors import LaunchError
from megatron_srpo.launch.job import Job
from megatron_srpo.launch.nemo import nemo_run, quietly
from megatron_srpo.launch.script import (
    container_mounts,
    sbatch_options,
    setup_lines,
    srun_options,
    trainer_script,
)
from megatron_srpo.launch.shell import Shell

#: Name of the job's one task within nemo-run, of its folder there, and of the ranks' logs.
_TASK = "ranks"


@dataclass(frozen=True)
class Submission:
    """A job in Slurm's queue.

    Attributes:
        job_id: Slurm's number.
        experiment: nemo-run's name for it.
    """

    job_id: str
    experiment: str


def batch_script(job: Job, commit: str | None, dependency: str) -> str:
    """Return the batch script that would be submitted; nothing is."""
    with quietly(io.StringIO()), _experiment(job, commit, dependency) as experiment:
        experiment.dryrun(log=False, delete_exp_dir=False)
        return _read_script(experiment)


def submit(job: Job, commit: str | None, dependency: str, shell: Shell) -> Submission:
    """Submit a job and return at once.

    Args:
        commit: of the code that travels with the job; None when none does.
        dependency: Slurm's words for what must have happened before, such as ``afterok:12``; may be empty.

    Raises:
        LaunchError: Slurm refuses it; says why.
    """
    shell.do(["mkdir", "-p", str(job.folder / "logs")])
    # What an earlier launch into this folder left; the logs stay.
    shell.do(["rm", "-f", *(str(job.folder / name) for name in ("cancelled", "requeues"))])
    said = io.StringIO()
    with quietly(said), _experiment(job, commit, dependency) as experiment:
        try:
            experiment.run(detach=True, tail_logs=False)
        except _tunnel_errors() as error:
            raise LaunchError(f"Slurm does not take the job: {_last_words(str(error))}") from error
        handle = str(experiment.jobs[0].handle or "")
    numbers = [part for part in handle.split("/") if part.isdigit()]
    if not numbers:
        raise LaunchError(f"Slurm does not take the job: {_last_words(said.getvalue())}")
    return Submission(numbers[0], experiment._id)


def _tunnel_errors() -> tuple[type[Exception], ...]:
    """Return what nemo-run's tunnels raise when a command or a connection fails; they come with it."""
    from invoke.exceptions import Failure
    from paramiko import SSHException

    return (Failure, SSHException, OSError)


@contextlib.contextmanager
def _experiment(job: Job, commit: str | None, dependency: str) -> Iterator[Any]:
    """Describe the job to nemo-run; nothing is submitted yet."""
    run = nemo_run()
    with run.Experiment(job.name, log_level="WARNING", skip_status_at_exit=True) as experiment:
        tunnel = _tunnel(run, job)
        executor = _executor(run, job, commit, tunnel, _folder(experiment, job))
        if dependency:
            executor.additional_parameters["dependency"] = dependency
        experiment.add(run.Script(inline=trainer_script(job)), executor=executor, name=_TASK)
        yield experiment


def _folder(experiment: Any, job: Job) -> str:
    """Return nemo-run's folder of the task, as the nodes see it (nemo-run decides so itself, later)."""
    if not job.launch.ssh.host:
        return os.path.join(experiment._exp_dir, _TASK)
    title = experiment._id.rpartition("_")[0]
    return os.path.join(job.launch.ssh.folder, title, experiment._id, _TASK)


def _tunnel(run: Any, job: Job) -> Any:
    ssh = job.launch.ssh
    if not ssh.host:
        return run.LocalTunnel(job_dir="")
    return run.SSHTunnel(host=ssh.host, user=ssh.user, job_dir=ssh.folder)


def _executor(run: Any, job: Job, commit: str | None, tunnel: Any, folder: str) -> Any:
    slurm, launch = job.launch.slurm, job.launch
    options = sbatch_options(job)
    if launch.rollout_nodes:
        # A rollout node that is lost must not end the job. Without such nodes, Slurm's own requeue is right.
        options["no-kill"] = True
    executor = run.SlurmExecutor(
        account=options.pop("account", None),
        partition=options.pop("partition", None),
        time=str(options.pop("time")),
        nodes=job.nodes,
        ntasks_per_node=1,
        # Without B: all processes of all steps are told, and the batch shell is not.
        signal=f"USR1@{slurm.stop_before_s}",
        job_name_prefix="srpo-",
        additional_parameters={**options, "job_name": job.name, "kill_on_invalid_dep": "yes"},
        srun_args=["--overlap", "--relative=0", f"--nodes={launch.nodes}", f"--ntasks={launch.nodes}"]
        + (srun_options(job) if launch.container.image else []),
        container_image=launch.container.image or None,
        container_mounts=container_mounts(job) if launch.container.image else [],
        tunnel=tunnel,
        packager=run.GitArchivePackager(ref=commit) if commit else run.Packager(),
        setup_lines=setup_lines(job, commit is not None, folder),
        poll_estimated_start_time=False,
        retries=0,
    )
    details = executor.job_details
    details.job_name, details.folder = _TASK, str(job.folder / "logs")
    return executor


def _read_script(experiment: Any) -> str:
    return Path(experiment._exp_dir, f"{_TASK}_sbatch.sh").read_text(encoding="utf-8")


def _last_words(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[-8:])[-800:] or "no reason was given"
