"""A run or self-play, ready to be launched: its configuration with absolute paths, and who runs where."""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from megatron_srpo.config.launch import LaunchConfig
from megatron_srpo.config.loader import with_overrides
from megatron_srpo.config.run import RunConfig
from megatron_srpo.config.self_play import SelfPlayConfig
from megatron_srpo.errors import ConfigError


@dataclass(frozen=True)
class Job:
    """One run on given nodes.

    Attributes:
        name: of the job.
        run: the configuration that the ranks read.
        launch: where and how.
        workdir: folder from which relative paths of ``run`` count; absolute.
        run_folder: ``run.output_dir``, absolute.
        servers_per_node: on each node that holds servers which are started apart from the ranks.
        self_play: what the ranks read instead, where they play; ``run`` is then its Solver's.
    """

    name: str
    run: RunConfig
    launch: LaunchConfig
    workdir: PurePosixPath
    run_folder: PurePosixPath
    servers_per_node: int
    self_play: SelfPlayConfig | None = None

    @property
    def command(self) -> str:
        """The command that every rank runs."""
        return "train" if self.self_play is None else "self-play"

    @property
    def settings(self) -> RunConfig | SelfPlayConfig:
        """The configuration that every rank reads."""
        return self.self_play or self.run

    @property
    def folder(self) -> PurePosixPath:
        """What belongs to the launch: scripts, logs, the list of servers."""
        return self.run_folder / "launch"

    @property
    def servers_folder(self) -> PurePosixPath:
        """Where servers register."""
        return self.folder / "servers"

    @property
    def registers(self) -> bool:
        """Whether servers are started apart from the ranks: on nodes of their own, or on several."""
        return self.server_nodes > 0

    @property
    def first_server_node(self) -> int:
        """Place, among the job's nodes, of the first that holds servers."""
        return self.launch.nodes if self.launch.rollout_nodes else 0

    @property
    def server_nodes(self) -> int:
        """Nodes on which servers are started apart from the ranks."""
        several = self.run.rollout.engine == "sglang" and self.launch.nodes > 1
        external = bool(self.run.rollout.sglang.urls)
        return self.launch.rollout_nodes or (self.launch.nodes if several and not external else 0)

    @property
    def python(self) -> str:
        """The Python of all roles."""
        elsewhere = self.launch.container.image or self.launch.ssh.host
        return self.launch.python or ("python" if elsewhere else sys.executable)

    @property
    def nodes(self) -> int:
        """All nodes of the job."""
        return self.launch.nodes + self.launch.rollout_nodes


def make_job(config: RunConfig | SelfPlayConfig, launch: LaunchConfig, here: str | Path) -> Job:
    """Settle where everything runs.

    Args:
        here: the folder of the launch; paths count from it unless ``launch.workdir`` says otherwise.

    Raises:
        ConfigError: nodes, servers and placement do not fit together.
    """
    if isinstance(config, RunConfig):
        return _make_job(config, launch, here)
    run = dataclasses.replace(config.solver, output_dir=config.output_dir)
    job = _make_job(run, launch, here)
    if job.registers:
        raise ConfigError(
            f"launch.nodes = {launch.nodes} and launch.rollout_nodes = {launch.rollout_nodes}: a self-play's "
            "servers hold several models in turn and are started by its first rank, on its own node; use one "
            "node, or name servers of your own in rollout.sglang.urls of challenger and solver"
        )
    if launch.launcher != "torchrun":
        raise ConfigError(
            f"launch.launcher = {launch.launcher!r}: while one rank asks the frozen models, the others give "
            "no sign of life, which it takes for a hang; set launch.launcher=torchrun"
        )
    return dataclasses.replace(job, self_play=with_overrides(config, [f"output_dir={job.run_folder}"]))


def _make_job(run: RunConfig, launch: LaunchConfig, here: str | Path) -> Job:
    workdir = PurePosixPath(launch.workdir or str(Path(here).absolute()))
    run_folder = workdir / run.output_dir
    per_node = launch.servers_per_node or run.rollout.sglang.servers
    job = Job(launch.name or run_folder.name, run, launch, workdir, run_folder, per_node)
    _check_servers(job)
    overrides = [f"output_dir={run_folder}"]
    if job.registers:
        overrides += [
            f"rollout.sglang.registry={job.servers_folder}",
            f"rollout.sglang.servers={job.server_nodes * per_node}",
        ]
    return dataclasses.replace(job, run=with_overrides(run, overrides))


def _check_servers(job: Job) -> None:
    launch, rollout = job.launch, job.run.rollout
    if launch.rollout_nodes and rollout.engine != "sglang":
        raise ConfigError(
            f"launch.rollout_nodes = {launch.rollout_nodes} with rollout.engine = {rollout.engine!r}: these "
            "nodes hold SGLang servers; set rollout.engine=sglang, or launch.rollout_nodes=0"
        )
    if launch.rollout_nodes and rollout.sglang.urls:
        raise ConfigError(
            f"launch.rollout_nodes = {launch.rollout_nodes} starts servers, and rollout.sglang.urls names "
            "others; leave one of them out"
        )
    if launch.rollout_nodes and rollout.placement == "colocated":
        raise ConfigError(
            f"launch.rollout_nodes = {launch.rollout_nodes} with rollout.placement = 'colocated': servers on "
            "nodes of their own share no device; set rollout.placement=disaggregated"
        )
    if job.registers and rollout.sglang.registry:
        raise ConfigError(
            f"rollout.sglang.registry = {rollout.sglang.registry!r} is set by the launch; leave it out"
        )
    _check_devices(job)


def _check_devices(job: Job) -> None:
    """Servers of one node must fit on it; on a node that also trains, this is known for colocated ones."""
    launch, sglang = job.launch, job.run.rollout.sglang
    alone = bool(launch.rollout_nodes) or job.run.rollout.placement == "colocated"
    gpus = launch.slurm.gpus_per_node if launch.slurm.gpus_per_node is not None else launch.ranks_per_node
    needed = job.servers_per_node * sglang.tensor_parallel
    if job.registers and alone and gpus and needed > gpus:
        raise ConfigError(
            f"{job.servers_per_node} servers per node x rollout.sglang.tensor_parallel = {needed} GPUs, but "
            f"a node has {gpus}; lower launch.servers_per_node or rollout.sglang.tensor_parallel"
        )
