"""Runs a job on this machine, through nemo-run's LocalExecutor: the ranks start their servers themselves."""

import io
import os
import shlex
import threading
from collections.abc import Callable
from typing import Any

from megatron_srpo.errors import ConfigError
from megatron_srpo.launch.job import Job
from megatron_srpo.launch.nemo import nemo_run, quietly
from megatron_srpo.launch.script import role_files, trainer_script
from megatron_srpo.launch.shell import Shell

_TASK = "ranks"
_LOOK_S = 1.0


def check_local(job: Job) -> None:
    """Refuse what needs more than one machine, or a container runtime.

    Raises:
        ConfigError: names the key.
    """
    launch = job.launch
    for name, value, usual in (
        ("nodes", launch.nodes, 1),
        ("rollout_nodes", launch.rollout_nodes, 0),
        ("container.image", launch.container.image, ""),
        ("ssh.host", launch.ssh.host, ""),
        ("after", launch.after, ()),
    ):
        if value != usual:
            raise ConfigError(f"launch.{name} = {value!r} needs --executor slurm; this machine runs one node")


def local_script(job: Job, log: str) -> str:
    """Return the shell text that runs the job here.

    Args:
        log: file that takes what it says.
    """
    return f"exec >>{shlex.quote(log)} 2>&1\n" + trainer_script(job, "127.0.0.1:0", f"local-{os.getpid()}")


def run_local(job: Job, shell: Shell, follow: Callable[[], None], on_start: Callable[[str], None]) -> None:
    """Run a job here and return when it has ended, well or not (``status.json`` says so).

    Args:
        follow: called every second or so meanwhile, from a thread of its own; it must not print through
            ``sys.stdout``, which nemo-run's own words are kept from meanwhile.
        on_start: is given nemo-run's name for the job, before it starts.
    """
    for name, text in role_files(job, packaged=False).items():
        shell.write(job.folder / name, text)
    logs = job.folder / "logs"
    shell.do(["mkdir", "-p", str(logs)])
    run, ended = nemo_run(), threading.Event()
    follower = threading.Thread(target=_repeat, args=(follow, ended), name="follow", daemon=True)
    with (
        quietly(io.StringIO()),
        run.Experiment(job.name, log_level="WARNING", skip_status_at_exit=True) as experiment,
    ):
        on_start(experiment._id)
        script = local_script(job, str(logs / f"log-ranks_{os.getpid()}_0.out"))
        experiment.add(run.Script(inline=script), executor=_executor(run), name=_TASK)
        follower.start()
        try:
            experiment.run(detach=False, tail_logs=False)
        finally:
            ended.set()
            follower.join()


def _executor(run: Any) -> Any:
    return run.LocalExecutor(ntasks_per_node=1, packager=run.Packager())


def _repeat(action: Callable[[], None], ended: threading.Event) -> None:
    while not ended.wait(_LOOK_S):
        action()
