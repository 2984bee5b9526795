"""One training step under a layout: does it fit, what does it take, where do the seconds go."""

from dataclasses import asdict, dataclass, fields
from functools import lru_cache

from megatron_srpo.planner.assumptions import Assumptions
from megatron_srpo.planner.communication import Traffic
from megatron_srpo.planner.hardware import Gpu
from megatron_srpo.planner.layout import Layout, Obstacle, obstacle
from megatron_srpo.planner.memory import Memory, fullest_stage, in_gib, usable_bytes
from megatron_srpo.planner.parameters import model_parameters
from megatron_srpo.planner.rollout_time import Servers, held_weight_bytes
from megatron_srpo.planner.shape import ModelShape
from megatron_srpo.planner.training_time import Pass, Trainer
from megatron_srpo.planner.workload import Workload

#: A server that cannot hold so many of the longest sequences is not worth starting.
LEAST_RUNNING = 4


@dataclass(frozen=True)
class Engine:
    """The servers that sample.

    Attributes:
        tensor: GPUs of one server.
        gpus: of all servers; where ``colocated``, all of the trainer's.
    """

    tensor: int
    gpus: int
    colocated: bool = True

    def __str__(self) -> str:
        where = "colocated" if self.colocated else f"{self.gpus} GPUs of their own"
        return f"servers TP{self.tensor}, {where}"


@dataclass(frozen=True)
class Phases:
    """Seconds of a step by phase."""

    rollout: float = 0.0
    score: float = 0.0
    teacher: float = 0.0
    update: float = 0.0
    optimizer: float = 0.0
    sync: float = 0.0
    other: float = 0.0

    @property
    def training(self) -> float:
        """What the trainer's GPUs do while other GPUs sample."""
        return self.score + self.teacher + self.update + self.optimizer

    def step(self, staleness: int) -> float:
        """Return the seconds of a step: everything in turn, or sampling beside training."""
        if staleness:
            return max(self.rollout, self.training + self.other) + self.sync
        return sum(asdict(self).values())


PHASES = tuple(one.name for one in fields(Phases))


@dataclass(frozen=True)
class Problem:
    """What is to be planned, without the layout."""

    shape: ModelShape
    workload: Workload
    gpu: Gpu
    assumptions: Assumptions


@dataclass(frozen=True)
class Plan:
    """A layout that fits, and what it takes.

    Attributes:
        stage: the pipeline stage that needs most memory, and its ``memory``.
        engine_weights: bytes per GPU of the servers' weights; ``engine_cache`` is left for keys and values.
        running: sequences that one server samples at once.
        traffic: per GPU and step, by collective.
    """

    layout: Layout
    engine: Engine
    gpus: int
    stage: int
    memory: Memory
    engine_weights: float
    engine_cache: float
    running: float
    phases: Phases
    seconds: float
    tokens_per_second_per_gpu: float
    traffic: tuple[Traffic, ...]


def plan_step(problem: Problem, layout: Layout, engine: Engine) -> Plan | Obstacle:
    """Plan one step, or say why it cannot be."""
    found = _batch(problem.workload, layout) or obstacle(problem.shape, layout) or _serving(problem, engine)
    if found is not None:
        return found
    stage, memory = _fullest(problem, layout)
    available = usable_bytes(problem.gpu, problem.assumptions)
    if memory.total > available:
        return _too_much(memory, available, stage)
    weights = held_weight_bytes(problem.shape, engine.tensor) if problem.workload.rollouts else 0.0
    cache = _cache(problem, engine, memory, weights, available)
    servers = _servers(problem, engine, cache)
    need = LEAST_RUNNING * servers.kv_bytes_per_token
    need *= problem.workload.prompt_tokens + problem.workload.max_response_tokens
    if problem.workload.rollouts and cache < need:
        return _no_cache(memory, engine, weights, need, weights + cache)
    return _timed(problem, layout, engine, stage, memory, weights, servers)


def _timed(
    problem: Problem,
    layout: Layout,
    engine: Engine,
    stage: int,
    memory: Memory,
    weights: float,
    servers: Servers,
) -> Plan:
    phases, traffic = step_phases(problem, layout, engine, servers.cache_bytes)
    gpus = layout.gpus + (0 if engine.colocated else engine.gpus)
    seconds = phases.step(problem.workload.staleness)
    return Plan(
        layout=layout,
        engine=engine,
        gpus=gpus,
        stage=stage,
        memory=memory,
        engine_weights=weights,
        engine_cache=servers.cache_bytes,
        running=servers.running if problem.workload.rollouts else 0.0,
        phases=phases,
        seconds=seconds,
        tokens_per_second_per_gpu=problem.workload.tokens / seconds / gpus,
        traffic=_together(traffic),
    )


def step_phases(
    problem: Problem, layout: Layout, engine: Engine, cache_bytes: float
) -> tuple[Phases, list[Traffic]]:
    """Time a step, whether or not it fits; return also what each GPU sends."""
    servers = _servers(problem, engine, cache_bytes)
    trainer = Trainer(problem.shape, layout, problem.workload, problem.gpu, problem.assumptions)
    passes = _training(trainer)
    work, assumed = problem.workload, problem.assumptions
    sync, rollout = 0.0, 0.0
    traffic = [one for done in passes for one in done.traffic]
    if work.rollouts:
        rollout = servers.steady_seconds() if work.staleness > 1 else servers.seconds()
        sync, sent = _synchronisation(problem, engine)
        traffic.append(sent)
    score, teacher, update, optimizer = (done.seconds for done in passes)
    switch = assumed.switch_s if engine.colocated and work.rollouts else 0.0
    other = (assumed.step_s if work.rollouts else 0.0) + switch
    return Phases(rollout, score, teacher, update, optimizer, sync, other), traffic


@lru_cache(maxsize=20000)
def _training(trainer: Trainer) -> tuple[Pass, Pass, Pass, Pass]:
    """The same for every choice of servers, so computed once."""
    return trainer.scoring(), trainer.teaching(), trainer.update(), trainer.optimizer()


@lru_cache(maxsize=20000)
def _fullest(problem: Problem, layout: Layout) -> tuple[int, Memory]:
    return fullest_stage(problem.shape, layout, problem.workload, problem.assumptions)


def _synchronisation(problem: Problem, engine: Engine) -> tuple[float, Traffic]:
    """Every GPU of the servers receives its part of the bf16 weights."""
    received = 2 * model_parameters(problem.shape).total / engine.tensor
    gpu, assumed = problem.gpu, problem.assumptions
    # Colocated, a part comes from the same node, but the assembly is of the same kind.
    link = gpu.nvlink if engine.colocated and engine.tensor <= gpu.node_gpus else gpu.network
    seconds = assumed.sync_s + received / (link * assumed.sync_link)
    name = "NVLink" if link == gpu.nvlink else "network"
    return seconds, Traffic("weights to servers", "broadcast", name, received, seconds)


def synchronisation_seconds(problem: Problem, engine: Engine) -> float:
    """Return the seconds of one weight synchronisation."""
    return _synchronisation(problem, engine)[0]


def _servers(problem: Problem, engine: Engine, cache: float) -> Servers:
    return Servers(
        problem.shape,
        problem.workload,
        problem.gpu,
        problem.assumptions,
        engine.gpus,
        engine.tensor,
        cache,
    )


def _cache(problem: Problem, engine: Engine, memory: Memory, weights: float, available: float) -> float:
    if engine.colocated:
        return available - memory.resident - weights
    return problem.gpu.memory_bytes * problem.assumptions.engine_memory - weights


def _batch(workload: Workload, layout: Layout) -> Obstacle | None:
    per_update = workload.prompts // workload.optimizer_steps
    if per_update % layout.data:
        return Obstacle(
            "DP does not divide the prompts",
            f"{per_update} prompts per optimizer step cannot be shared evenly by DP {layout.data}",
            layout.data / per_update if layout.data > per_update else float("inf"),
        )
    return None


def _serving(problem: Problem, engine: Engine) -> Obstacle | None:
    if not problem.workload.rollouts:
        return None
    if engine.gpus < engine.tensor or engine.gpus % engine.tensor:
        return Obstacle(
            "servers do not fit their GPUs", f"servers of TP {engine.tensor} do not divide {engine.gpus} GPUs"
        )
    heads = problem.shape.num_heads
    if heads % engine.tensor:
        return Obstacle(
            "server TP does not divide attention heads", f"server TP {engine.tensor} of {heads} heads"
        )
    if engine.colocated and problem.workload.staleness:
        return Obstacle("stale rollouts need GPUs of their own", "colocated servers cannot sample ahead")
    return None


def _too_much(memory: Memory, available: float, stage: int) -> Obstacle:
    parts = sorted(asdict(memory).items(), key=lambda part: -part[1])[:3]
    largest = ", ".join(f"{name} {in_gib(size):.0f}" for name, size in parts)
    return Obstacle(
        "trainer's memory",
        f"stage {stage} needs {in_gib(memory.total):.1f} of {in_gib(available):.1f} GiB ({largest})",
        memory.total / available,
    )


def _no_cache(memory: Memory, engine: Engine, weights: float, need: float, left: float) -> Obstacle:
    """Say so; ``left`` is what the trainer leaves of a GPU."""
    resident = memory.resident if engine.colocated else 0.0
    used, available = resident + weights + need, resident + left
    return Obstacle(
        "servers' memory",
        f"server TP {engine.tensor} needs {in_gib(used):.1f} of {in_gib(available):.1f} GiB (trainer "
        f"{in_gib(resident):.0f}, weights {in_gib(weights):.0f}, {LEAST_RUNNING} longest sequences "
        f"{in_gib(need):.0f})",
        used / available,
    )


def _together(traffic: list[Traffic]) -> tuple[Traffic, ...]:
    """Add up messages of the same name and collective."""
    found: dict[tuple[str, str], Traffic] = {}
    for one in traffic:
        key = (one.name, one.collective)
        old = found.get(key)
        sent = one.sent + (old.sent if old else 0.0)
        seconds = one.seconds + (old.seconds if old else 0.0)
        found[key] = Traffic(one.name, one.collective, one.link, sent, seconds)
    return tuple(one for one in found.values() if one.sent)
