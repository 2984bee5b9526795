"""Configuration of a launch: where a run is started, and with what around it. It decides no trajectory."""

import re
from dataclasses import dataclass
from typing import Any

from megatron_srpo.config.base import Config, option
from megatron_srpo.errors import ConfigError

#: Options of sbatch that other keys set, by the name under which sbatch knows them.
OWNED_SBATCH = {
    "nodes": "launch.nodes and launch.rollout_nodes",
    "ntasks": "nothing: one task per node starts that node's ranks",
    "ntasks-per-node": "launch.ranks_per_node",
    "job-name": "launch.name",
    "account": "launch.slurm.account",
    "partition": "launch.slurm.partition",
    "time": "launch.slurm.time",
    "signal": "launch.slurm.stop_before_s",
    "dependency": "launch.after",
    "no-kill": "nothing: it is set with launch.rollout_nodes",
    "requeue": "launch.slurm.max_requeues",
    "output": "nothing: logs lie in launch/logs of the run folder",
    "error": "nothing: logs lie in launch/logs of the run folder",
    "array": "nothing: a run is one job; start several",
}

_TIME = re.compile(r"(\d+-)?\d+(:\d{1,2}){0,2}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class SlurmConfig(Config):
    """What is asked of Slurm. Empty texts and nulls leave the choice to the cluster."""

    account: str = option("", "Account that is charged.")
    partition: str = option("", "Partition.")
    qos: str = option("", "Quality of service.")
    time: str | int = option(
        "04:00:00",
        "Time limit of one slice, as Slurm writes it or in minutes; a requeued run gets a new one.",
    )
    gpus_per_node: int | None = option(
        None, "GPUs asked for per node; null: as many as ranks_per_node; 0: none is asked for.", minimum=0
    )
    cpus_per_task: int | None = option(None, "Processor cores per node.", minimum=1)
    mem: str | int = option("0", "Memory per node, as Slurm writes it or in MB; 0: all of it.")
    exclusive: bool = option(True, "Whole nodes.")
    stop_before_s: int = option(
        300, "Seconds before the time limit at which the run saves and is requeued.", minimum=10
    )
    max_requeues: int = option(
        100, "Requeues after time limits, preemption and lost nodes before the run ends.", minimum=0
    )
    retries: int = option(0, "Requeues after failures of the run itself.", minimum=0)
    replace_servers: bool = option(
        True, "A rollout node that is lost is replaced by a job of its own, which joins the run."
    )
    options: dict[str, Any] = option(
        help="Other sbatch options by their own names, e.g. {reservation: night, exclude: node7}.",
        factory=dict,
    )

    def validate(self) -> None:
        """Refuse a malformed time and options that other keys set."""
        if not _TIME.fullmatch(str(self.time)):
            raise ConfigError(f"SlurmConfig.time = {self.time!r}; give minutes, HH:MM:SS or DAYS-HH:MM:SS")
        for name, value in self.options.items():
            owner = OWNED_SBATCH.get(name.replace("_", "-"))
            if owner is not None:
                raise ConfigError(f"SlurmConfig.options.{name} is not set here; use {owner}")
            if not isinstance(value, str | int | float):
                raise ConfigError(
                    f"SlurmConfig.options.{name} = {value!r}; give a text, a number, or true for a flag"
                )


@dataclass(frozen=True, kw_only=True)
class ContainerConfig(Config):
    """The container of all roles, through pyxis. Without an image, roles run in the nodes' own system."""

    image: str = option("", "Image, as pyxis takes it: a squashfs file, or registry#name:tag.")
    mounts: tuple[str, ...] = option(
        (), "Folders from:to[:flags]. The working folder and the run folder are mounted anyway."
    )
    writable: bool = option(False, "Let roles write into the container's own file system.")
    arguments: tuple[str, ...] = option((), "Further srun options, e.g. [--no-container-mount-home].")

    def validate(self) -> None:
        """Refuse what would be ignored without an image, and mounts that pyxis cannot read."""
        if not self.image and (self.mounts or self.arguments or self.writable):
            raise ConfigError("ContainerConfig has mounts, arguments or writable, but no image; name one")
        for mount in self.mounts:
            if len(mount.split(":")) not in (2, 3) or "," in mount:
                raise ConfigError(f"ContainerConfig.mounts has {mount!r}; write from:to or from:to:flags")
        for argument in self.arguments:
            if not argument.startswith("-") or any(character.isspace() for character in argument):
                raise ConfigError(
                    f"ContainerConfig.arguments has {argument!r}; write srun options without spaces: "
                    "--name=value"
                )


@dataclass(frozen=True, kw_only=True)
class CodeConfig(Config):
    """The code that a job runs."""

    package: str = option(
        "auto",
        "git: the commit checked out here travels with the job; none: what is installed there runs; auto: "
        "git when megatron_srpo is run from a work tree.",
        choices=("auto", "git", "none"),
    )
    uncommitted: str = option(
        "refuse",
        "Changes that are not committed do not travel. refuse: ask to commit them; warn: go on without them.",
        choices=("refuse", "warn"),
    )


@dataclass(frozen=True, kw_only=True)
class SshConfig(Config):
    """A login node, for launching from another machine."""

    host: str = option("", "Name of the login node; empty: this machine can submit.")
    user: str = option("", "User there; empty: as ssh decides.")
    folder: str = option("", "Folder there for nemo-run's files; on the file system that all nodes share.")

    def validate(self) -> None:
        """Refuse half an address."""
        if self.host and not self.folder.startswith("/"):
            raise ConfigError(
                f"SshConfig.folder = {self.folder!r} with host = {self.host!r}; give an absolute path there"
            )
        if self.host.startswith("-"):
            raise ConfigError(f"SshConfig.host = {self.host!r}; give the name of a machine")

    @property
    def address(self) -> str:
        """What ``ssh`` is told."""
        return f"{self.user}@{self.host}" if self.user else self.host


@dataclass(frozen=True, kw_only=True)
class LaunchConfig(Config):
    """Nodes, environment and cluster of a run."""

    name: str = option("", "Name of the job; empty: the run folder's.")
    nodes: int = option(1, "Nodes that train.", minimum=1)
    ranks_per_node: int = option(8, "Ranks, one per GPU, on each of them.", minimum=1)
    rollout_nodes: int = option(
        0, "Further nodes, for SGLang servers alone; 0: servers run on the nodes that train.", minimum=0
    )
    servers_per_node: int | None = option(
        None, "SGLang servers on each node that holds any; null: the run's rollout.sglang.servers.", minimum=1
    )
    workdir: str = option("", "Folder from which relative paths count; empty: the one of the launch.")
    python: str = option(
        "",
        "The Python that has megatron_srpo. Empty: the one that launches; in containers, over ssh: python.",
    )
    setup: tuple[str, ...] = option(
        (), "Shell lines before every role, e.g. [module load cuda, source venv/bin/activate]."
    )
    environment: dict[str, str | int] = option(help="Environment variables of every role.", factory=dict)
    after: tuple[str, ...] = option(
        (), "Start when these have succeeded: job numbers, run folders, or Slurm's own afterany:123."
    )
    launcher: str = option(
        "torchrun",
        "What starts ranks. ft_launcher: that of nvidia-resiliency-ext, which ends a run that hangs.",
        choices=("torchrun", "ft_launcher"),
    )
    hang_timeout_s: float = option(
        1800.0, "ft_launcher: seconds without a finished phase of any rank after which it hangs.", minimum=1
    )
    hang_restarts: int = option(
        3,
        "ft_launcher: restarts of the ranks within the job; each goes on from the last checkpoint.",
        minimum=0,
    )
    slurm: SlurmConfig = option(factory=SlurmConfig, help="What is asked of Slurm.")
    container: ContainerConfig = option(factory=ContainerConfig, help="Container of the roles (pyxis).")
    code: CodeConfig = option(factory=CodeConfig, help="The code that runs.")
    ssh: SshConfig = option(factory=SshConfig, help="Login node.")

    def validate(self) -> None:
        """Refuse names that no shell can export, and relative folders on another machine."""
        for name in self.environment:
            if not _VARIABLE.fullmatch(name):
                raise ConfigError(f"LaunchConfig.environment has {name!r}, which is no name of a variable")
        if "/" in self.name or any(character.isspace() for character in self.name):
            raise ConfigError(f"LaunchConfig.name = {self.name!r}; give a name without spaces and slashes")
        if self.ssh.host and not self.workdir.startswith("/"):
            raise ConfigError(
                f"LaunchConfig.workdir = {self.workdir!r} with ssh.host = {self.ssh.host!r}; give an "
                "absolute path there"
            )

    @property
    def ranks(self) -> int:
        """Ranks of the job."""
        return self.nodes * self.ranks_per_node
