"""What a virtual cluster is made of, and where its files lie."""

import json
import re
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

PREFIX = "virtual-slurm-"
NETWORK = "198.18.0"  # RFC 2544, for tests; every cluster has a bridge of its own, so all may use it
CONTROLLER = f"{NETWORK}.1"
MAX_NODES = 200


class VirtualSlurmError(RuntimeError):
    """A cluster that cannot be started, found or used; the message names the remedy."""


@dataclass(frozen=True)
class Settings:
    """Size and timing of a cluster. Times are in seconds.

    Args:
        name: tells clusters on one machine apart: letters and digits, at most 20.
        nodes: number of compute nodes, called ``node1``, ``node2``, ...
        cpus, memory_mb, gpus: what each node claims to have. The GPUs are empty device files.
        accounting: run slurmdbd and its database, so that ``sacct`` works.
        pyxis: load a stand-in for NVIDIA's pyxis, for ``srun --container-image`` and ``--container-mounts``.
        slurmd_timeout: how long a silent node stays up; it counts as lost at most half of this later.
        kill_wait: between SIGTERM and SIGKILL at the end of a job.
        grace_time: between SIGTERM and the end of a preempted job.
        requeue_delay: how long a requeued job waits before it may start.
        owner: a process; when it is gone, the cluster is a leftover (see ``Cluster.leftovers``). 0: nobody.
        owner_started: when that process started, in the kernel's ticks.

    Raises:
        VirtualSlurmError: for a name or number that cannot be used.
    """

    name: str = "default"
    nodes: int = 4
    cpus: int = 16
    memory_mb: int = 8000
    gpus: int = 0
    accounting: bool = True
    pyxis: bool = False
    slurmd_timeout: int = 20
    kill_wait: int = 10
    grace_time: int = 15
    requeue_delay: int = 10
    owner: int = 0
    owner_started: int = 0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]{1,20}", self.name):
            raise VirtualSlurmError(f"name {self.name!r}: use 1 to 20 lower-case letters and digits")
        if not 1 <= self.nodes <= MAX_NODES:
            raise VirtualSlurmError(f"nodes={self.nodes}: use 1 to {MAX_NODES}")

    @property
    def folder(self) -> Path:
        """The folder of everything that the cluster writes."""
        return Path(tempfile.gettempdir()) / f"{PREFIX}{self.name}"

    @property
    def slurm_conf(self) -> Path:
        """What ``SLURM_CONF`` must name for Slurm's commands."""
        return self.folder / "etc/slurm.conf"

    @property
    def munge_socket(self) -> Path:
        """The socket of this cluster's own munge daemon."""
        return self.folder / "munge/socket"

    def address(self, node: int) -> str:
        """Return the IPv4 address of node ``node`` (from 1)."""
        self.check_node(node)
        return f"{NETWORK}.{10 + node}"

    def check_node(self, node: int) -> None:
        """Raise VirtualSlurmError unless there is a node of this number."""
        if not 1 <= node <= self.nodes:
            raise VirtualSlurmError(f"node {node}: this cluster has node 1 to {self.nodes}")

    def save(self) -> None:
        """Write the settings into the cluster's folder."""
        (self.folder / "settings.json").write_text(json.dumps(asdict(self)))


def saved() -> list[Settings]:
    """Return the settings of all clusters on this machine that are up, or were not taken down."""
    files = sorted(Path(tempfile.gettempdir()).glob(f"{PREFIX}*/settings.json"))
    return [Settings(**json.loads(file.read_text())) for file in files]


def load(name: str) -> Settings:
    """Return the settings of a cluster.

    Raises:
        VirtualSlurmError: when there is none of this name.
    """
    for settings in saved():
        if settings.name == name:
            return settings
    raise VirtualSlurmError(
        f"no virtual cluster {name!r} is up: python -m tools.virtual_slurm --name {name} up"
    )
