"""The shell text of a job: what is the same for all (``job.sh``) and, before it, what is this job's own."""

import shlex
from importlib.resources import files

from megatron_srpo.config.loader import to_yaml
from megatron_srpo.launch.job import Job

#: How nemo-run calls the job's folder; it writes the real path where there is no container.
JOB_FOLDER = "/nemo_run"

_END = "SRPO_END_OF_FILE"
#: Seconds between two looks at the servers' nodes.
_POLL_S = 10
#: Starts of the servers of one node, by the job, before they are given up; each restarts its servers itself.
_SERVER_STARTS = 3


def setup_lines(job: Job, packaged: bool, job_folder: str) -> str:
    """Return what the batch script does before its srun starts the ranks.

    Args:
        packaged: the code travels with the job.
        job_folder: nemo-run's folder of this job, as the nodes see it.
    """
    slurm = job.launch.slurm
    values = {
        "SRPO_RUN": str(job.run_folder),
        "SRPO_LAUNCH": str(job.folder),
        "SRPO_SERVERS": str(job.servers_folder),
        "SRPO_ALL_NODES": job.nodes,
        "SRPO_TRAIN_NODES": job.launch.nodes,
        "SRPO_FIRST_SERVER": job.first_server_node,
        "SRPO_SERVER_NODES": job.server_nodes,
        "SRPO_SERVERS_PER_NODE": job.servers_per_node,
        "SRPO_SERVER_STARTS": _SERVER_STARTS,
        "SRPO_POLL": _POLL_S,
        "SRPO_STOP_BEFORE": slurm.stop_before_s,
        "SRPO_MAX_REQUEUES": slurm.max_requeues,
        "SRPO_RETRIES": slurm.retries,
        "SRPO_REPLACE": int(slurm.replace_servers),
    }
    lists = {
        "SRPO_CONTAINER": container_arguments(job, job_folder),
        "SRPO_REPLACEMENT": replacement_options(job),
    }
    return "\n".join(
        [
            "# What is this job's own.",
            "set +evx",
            *(f"{name}={shlex.quote(str(value))}" for name, value in values.items()),
            *(f"{name}=({shlex.join(items)})" for name, items in lists.items()),
            'mkdir -p "$SRPO_LAUNCH/logs"',
            *(_here(name, text) for name, text in role_files(job, packaged).items()),
            _here("replacement.sh", _replacement(job, job_folder)),
            _here("guard.sh", _part("guard.sh")),
            "",
            _part("job.sh"),
        ]
    )


def _part(name: str) -> str:
    """Return shell text that is the same for all jobs."""
    return files("megatron_srpo.launch").joinpath(name).read_text(encoding="utf-8")


def role_files(job: Job, packaged: bool) -> dict[str, str]:
    """Return the files of the launch folder: the configuration, and the shell text of each role."""
    return {
        "run.yaml": to_yaml(job.settings),
        "role.sh": _role(job, packaged),
        "server.sh": _server(job),
    }


def trainer_script(job: Job, endpoint: str = "$SRPO_HEAD:$SRPO_PORT", slice_name: str = "$SRPO_SLICE") -> str:
    """Return the shell text that starts the ranks of one node.

    Args:
        endpoint: where the nodes' starters meet; shell variables are allowed.
        slice_name: what distinguishes this start from others.
    """
    launch = job.launch
    restarts = launch.hang_restarts if launch.launcher == "ft_launcher" else 0
    arguments = ["--resume-if-started", "--config", shlex.quote(str(job.folder / "run.yaml"))]
    if job.registers:
        arguments.append('"rollout.sglang.host=$SRPO_HEAD"')
    return "\n".join(
        [
            f". {shlex.quote(str(job.folder / 'role.sh'))}",
            "# Ranks handle these by themselves; what starts them would end them within half a minute.",
            "trap '' TERM USR1",
            "# The address at which this node is seen by the first one.",
            f'own=$({shlex.quote(job.python)} -c "import socket, sys',
            "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
            "s.connect((sys.argv[1].rpartition(':')[0], 9))",
            f'print(s.getsockname()[0])" "{endpoint}") || exit 1',
            " \\\n    ".join(
                [
                    f"exec {_starter(job)}",
                    f"--nnodes={launch.nodes} --nproc-per-node={launch.ranks_per_node}",
                    f"--max-restarts={restarts}",
                    f'--rdzv-backend=c10d --rdzv-endpoint="{endpoint}" --rdzv-id="{slice_name}"',
                    '--rdzv-conf="is_host=$((${SLURM_NODEID:-0} == 0))" --local-addr="$own"',
                    f"-m megatron_srpo.cli {job.command} {' '.join(arguments)}",
                ]
            ),
            "",
        ]
    )


def container_arguments(job: Job, job_folder: str) -> list[str]:
    """Return srun's options for roles in a container, and none without one."""
    container = job.launch.container
    if not container.image:
        return []
    mounts = [*container_mounts(job), f"{job_folder}:{JOB_FOLDER}"]
    return [
        f"--container-image={container.image}",
        f"--container-mounts={','.join(mounts)}",
        *srun_options(job),
    ]


def container_mounts(job: Job) -> list[str]:
    """Return the folders that roles see: those asked for, and those that they cannot do without."""
    own = [str(job.workdir)]
    own += [] if job.run_folder.is_relative_to(job.workdir) else [str(job.run_folder)]
    given = list(job.launch.container.mounts)
    return [*given, *(f"{path}:{path}" for path in own if f"{path}:{path}" not in given)]


def srun_options(job: Job) -> list[str]:
    """Return further container options of srun."""
    container = job.launch.container
    return [*(["--container-writable"] if container.writable else []), *container.arguments]


def sbatch_options(job: Job) -> dict[str, str | int | float | bool]:
    """Return what every job of this run asks of Slurm, by sbatch's names; flags are True."""
    slurm, launch = job.launch.slurm, job.launch
    gpus = launch.ranks_per_node if slurm.gpus_per_node is None else slurm.gpus_per_node
    asked: dict[str, str | int | float | bool | None] = {
        "account": slurm.account,
        "partition": slurm.partition,
        "qos": slurm.qos,
        "time": slurm.time,
        "gpus-per-node": gpus,
        "cpus-per-task": slurm.cpus_per_task,
        "mem": str(slurm.mem),
        "exclusive": slurm.exclusive,
    }
    options = {name: value for name, value in asked.items() if value not in ("", None, False, 0)}
    extra = {name.replace("_", "-"): value for name, value in slurm.options.items() if value is not False}
    return {**options, **extra}


def replacement_options(job: Job) -> list[str]:
    """Return sbatch's options for a job that takes the place of a lost rollout node."""
    options = {**sbatch_options(job), "nodes": 1, "ntasks": 1, "job-name": f"{job.name}-servers"}
    flags = [f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items()]
    return [*flags, "--requeue", "--open-mode=append"]


def _starter(job: Job) -> str:
    if job.launch.launcher == "torchrun":
        return f"{shlex.quote(job.python)} -m torch.distributed.run"
    seconds = f"{job.launch.hang_timeout_s:g}"
    return f"ft_launcher --ft-initial-rank-heartbeat-timeout={seconds} --ft-rank-heartbeat-timeout={seconds}"


def _role(job: Job, packaged: bool) -> str:
    code = [f'export PYTHONPATH="{JOB_FOLDER}/code${{PYTHONPATH:+:$PYTHONPATH}}"'] if packaged else []
    given = (f"export {name}={shlex.quote(str(value))}" for name, value in job.launch.environment.items())
    return "\n".join(
        [
            "# The environment of every role.",
            f"cd {shlex.quote(str(job.workdir))} || exit 1",
            *job.launch.setup,
            *code,
            "# One thread per process, and the order of communication and products that Megatron-Core needs.",
            'export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"',
            'export CUDA_DEVICE_MAX_CONNECTIONS="${CUDA_DEVICE_MAX_CONNECTIONS:-1}"',
            *given,
            "",
        ]
    )


def _server(job: Job) -> str:
    arguments = [
        *("--config", str(job.folder / "run.yaml")),
        *("--register", str(job.servers_folder)),
        *("--slots", str(job.servers_per_node)),
    ]
    return "\n".join(
        [
            f". {shlex.quote(str(job.folder / 'role.sh'))}",
            "# They serve until the ranks have saved and the job ends them.",
            "trap '' TERM USR1",
            f'exec {shlex.quote(job.python)} -m megatron_srpo.cli serve {shlex.join(arguments)} --slot "$1"',
            "",
        ]
    )


def _replacement(job: Job, job_folder: str) -> str:
    arguments = shlex.join(container_arguments(job, job_folder))
    command = f"bash {shlex.quote(str(job.folder / 'server.sh'))}"
    return f'#!/bin/bash\nexec srun --ntasks=1 {arguments} {command} "$1"\n'


def _here(name: str, text: str) -> str:
    return f"cat >\"$SRPO_LAUNCH/{name}\" <<'{_END}'\n{text.rstrip()}\n{_END}"
