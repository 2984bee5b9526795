"""The runs of a study: from a base configuration to one job per number of nodes, mode and staleness."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePosixPath

from megatron_srpo.config.launch import LaunchConfig
from megatron_srpo.config.loader import with_overrides
from megatron_srpo.config.run import RunConfig
from megatron_srpo.errors import ConfigError, UserError
from megatron_srpo.launch.job import Job, make_job
from megatron_srpo.launch.local import check_local
from megatron_srpo.launch.start import check_job

MODES = ("weak", "strong")

#: A study times steps; what a run keeps and evaluates would only cost time and space.
_QUIET = (
    "checkpoint.every=0",
    "checkpoint.at_end=false",
    "checkpoint.export_hf=false",
    "evaluation.every=0",
    "evaluation.before=false",
    "evaluation.after=false",
)


@dataclass(frozen=True)
class Point:
    """One run of a study.

    Attributes:
        mode: ``weak`` or ``strong``; ``base`` where both are the same run: at the fewest nodes.
        nodes: that train; with the local executor, replicas on this machine.
    """

    mode: str
    nodes: int
    staleness: int

    @property
    def name(self) -> str:
        """Such as ``weak-n4-k2``: of the run's folder, its job and its lines."""
        return f"{self.mode}-n{self.nodes}-k{self.staleness}"


@dataclass(frozen=True)
class Sweep:
    """What is varied, and how long each run is.

    Attributes:
        nodes: in rising order.
        warmup: first steps of each run, which are not counted.
        rollout_ratio: nodes that hold servers alone, per node that trains.
    """

    executor: str
    nodes: tuple[int, ...]
    modes: tuple[str, ...]
    staleness: tuple[int, ...]
    steps: int
    warmup: int
    rollout_ratio: Fraction = Fraction(0)

    def __post_init__(self) -> None:
        for name in ("nodes", "modes", "staleness"):
            values = vars(self)[name]
            if len(set(values)) < len(values):
                raise ConfigError(f"--{name} {' '.join(map(str, values))} names one twice")
        least = max(1, *self.staleness)
        if not least <= self.warmup < self.steps:
            raise ConfigError(
                f"--warmup {self.warmup} with --steps {self.steps} and --staleness up to {least}: leave out "
                "the first steps, which load, compile and sample ahead: from 1 and the staleness up to one "
                "less than --steps"
            )
        if self.executor == "local" and self.rollout_ratio:
            raise ConfigError("--rollout-nodes-per-node needs --executor slurm; this machine is one node")

    def point(self, mode: str, nodes: int, staleness: int) -> Point:
        """Return the run that a mode has at some nodes; at the fewest, weak and strong share one."""
        return Point("base" if nodes == self.nodes[0] else mode, nodes, staleness)

    def lines(self) -> Iterator[tuple[str, Point]]:
        """Yield every line of the study's table: its mode and its run."""
        for mode in self.modes:
            for staleness in self.staleness:
                for nodes in self.nodes:
                    yield mode, self.point(mode, nodes, staleness)

    def points(self) -> list[Point]:
        """Return every run once, the smallest first."""
        return sorted(dict.fromkeys(point for _, point in self.lines()), key=lambda point: point.nodes)

    def growth(self, point: Point) -> Fraction:
        """Return by how much a run's batch is larger than the configuration's."""
        return Fraction(point.nodes, self.nodes[0]) if point.mode == "weak" else Fraction(1)


def make_point_job(
    sweep: Sweep, point: Point, run: RunConfig, launch: LaunchConfig, folder: PurePosixPath, here: Path
) -> Job:
    """Return the job of one point, which can be launched.

    Args:
        run: the configuration at the fewest nodes.
        folder: of this run.
        here: the folder of the launch.

    Raises:
        ConfigError: batch, ranks or servers do not come out even; names the point.
    """
    try:
        placed = _launch_of(sweep, point, run, launch)
        job = make_job(_run_of(sweep, point, run, folder), placed, here)
        if sweep.executor == "local":
            check_local(job)
        check_job(job)
    except UserError as error:
        raise ConfigError(f"{point.name}: {error}") from error
    return job


def server_gpus(job: Job) -> int:
    """Return the GPUs that servers have for themselves; 0 where they share those of the ranks."""
    rollout = job.run.rollout
    if rollout.engine == "local" or rollout.placement == "colocated":
        return 0
    return rollout.sglang.servers * rollout.sglang.tensor_parallel


def _launch_of(sweep: Sweep, point: Point, run: RunConfig, launch: LaunchConfig) -> LaunchConfig:
    if sweep.executor == "local":
        ranks = point.nodes * run.parallel.fewest_ranks
        return with_overrides(launch, [f"name={point.name}", "nodes=1", f"ranks_per_node={ranks}"])
    rollout_nodes = point.nodes * sweep.rollout_ratio
    if rollout_nodes.denominator > 1:
        raise ConfigError(
            f"--rollout-nodes-per-node {float(sweep.rollout_ratio):g} makes {float(rollout_nodes):g} rollout "
            f"nodes beside {point.nodes}; leave this number of nodes out, or change the ratio"
        )
    nodes = [f"nodes={point.nodes}", f"rollout_nodes={rollout_nodes}"]
    return with_overrides(launch, [f"name={point.name}", *nodes])


def _run_of(sweep: Sweep, point: Point, run: RunConfig, folder: PurePosixPath) -> RunConfig:
    prompts = _grown(sweep, point, "rollout.prompts_per_step", run.rollout.prompts_per_step)
    changes = [
        *_QUIET,
        f"output_dir={folder}",
        f"training.steps={sweep.steps}",
        f"rollout.max_staleness={point.staleness}",
        f"rollout.prompts_per_step={prompts}",
    ]
    mini = run.training.prompts_per_mini_batch
    if mini is not None:
        grown = _grown(sweep, point, "training.prompts_per_mini_batch", mini)
        changes.append(f"training.prompts_per_mini_batch={grown}")
    if run.rollout.engine == "sglang":
        _check_external(run)
        if (
            sweep.executor == "local"
        ):  # where replicas stand for nodes; on a cluster the launch counts servers
            changes.append(f"rollout.sglang.servers={point.nodes * run.rollout.sglang.servers}")
    return with_overrides(run, changes)


def _grown(sweep: Sweep, point: Point, key: str, value: int) -> int:
    """Return a batch size at a point of the sweep."""
    grown = value * sweep.growth(point)
    if grown.denominator > 1:
        raise ConfigError(
            f"{key} = {value} at {sweep.nodes[0]} nodes becomes {float(grown):g} at {point.nodes}; make it a "
            f"multiple of {grown.denominator}"
        )
    return int(grown)


def _check_external(run: RunConfig) -> None:
    if run.rollout.sglang.urls:
        raise ConfigError(
            "rollout.sglang.urls names servers that all runs of the study would share; leave it out"
        )
