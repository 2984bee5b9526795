"""Try every layout for a number of GPUs: the best few, and why the others fail."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from megatron_srpo.planner.layout import RECOMPUTE, Layout, Obstacle
from megatron_srpo.planner.shape import ModelShape
from megatron_srpo.planner.step import Engine, Plan, Problem, plan_step

#: Parts of the GPUs that servers of their own may take.
SERVER_SHARES = (0.25, 0.375, 0.5, 0.625, 0.75)


@dataclass(frozen=True)
class Failure:
    """One reason, how many layouts fail by it, and the one that misses by least."""

    reason: str
    count: int
    layout: Layout
    engine: Engine
    message: str
    miss: float


@dataclass(frozen=True)
class Found:
    """What a search found: ``plans`` by tokens/s, ``tried`` layouts, failures by count."""

    plans: tuple[Plan, ...]
    tried: int
    failures: tuple[Failure, ...]


def search(problem: Problem, gpus: int, like: Layout | None = None, keep: int = 5) -> Found:
    """Plan every layout of ``gpus`` GPUs, each with the least recomputation that fits.

    Args:
        like: gives dtype, kernels and whether the optimizer is distributed.
        keep: how many of the best to return; of plans that differ in the servers only, the best one.
    """
    best: dict[Layout, Plan] = {}
    failures: dict[str, Failure] = {}
    fitting: set[tuple[Layout, Engine]] = set()
    tried = 0
    for layout, engine in candidates(problem, gpus, like or Layout()):
        kind = (replace(layout, recompute="none"), engine)
        if kind in fitting:
            continue  # it fits with less recomputation, and is faster so
        tried += 1
        result = plan_step(problem, layout, engine)
        if isinstance(result, Obstacle):
            failures[result.reason] = _add(failures.get(result.reason), result, layout, engine)
            continue
        fitting.add(kind)
        if layout not in best or result.seconds < best[layout].seconds:
            best[layout] = result
    plans = sorted(best.values(), key=lambda plan: -plan.tokens_per_second_per_gpu)
    by_count = sorted(failures.values(), key=lambda failure: -failure.count)
    return Found(tuple(plans[:keep]), tried, tuple(by_count))


def _add(old: Failure | None, new: Obstacle, layout: Layout, engine: Engine) -> Failure:
    if old is None:
        return Failure(new.reason, 1, layout, engine, new.message, new.miss)
    if new.miss < old.miss:
        return Failure(new.reason, old.count + 1, layout, engine, new.message, new.miss)
    return replace(old, count=old.count + 1)


def candidates(problem: Problem, gpus: int, like: Layout) -> Iterator[tuple[Layout, Engine]]:
    """Yield every layout with every choice of servers."""
    for engine in engines(problem, gpus):
        training = gpus if engine.colocated else gpus - engine.gpus
        for layout in layouts(problem.shape, training, problem.gpu.node_gpus, like):
            yield layout, engine


def engines(problem: Problem, gpus: int) -> list[Engine]:
    """Return the choices of servers: colocated on-policy, and GPUs of their own."""
    if not problem.workload.rollouts:
        return [Engine(1, gpus)]
    sizes = [size for size in (1, 2, 4, 8, 16) if size <= gpus]
    found = [] if problem.workload.staleness else [Engine(size, gpus) for size in sizes]
    for share in SERVER_SHARES:
        own = int(gpus * share)
        found += [Engine(size, own, colocated=False) for size in sizes if own and own % size == 0]
    return found


def layouts(shape: ModelShape, gpus: int, node: int, like: Layout) -> Iterator[Layout]:
    """Yield the layouts of ``gpus`` training GPUs; tensor parallelism stays within a node."""
    for tensor in _powers(node):
        for pipeline, ends in _pipelines(shape.num_layers):
            for context in _powers(node):
                data, rest = divmod(gpus, tensor * pipeline * context)
                if not data or rest:
                    continue
                base = replace(
                    like,
                    tensor=tensor,
                    pipeline=pipeline,
                    first_stage_layers=ends,
                    last_stage_layers=ends,
                    context=context,
                    data=data,
                    sequence=tensor > 1,
                    expert=1,
                    virtual_pipeline=1,
                )
                yield from _variants(shape, base)


def _variants(shape: ModelShape, base: Layout) -> Iterator[Layout]:
    stages = base.stage_layers(shape.num_layers)
    chunks = [1] + ([2] if base.pipeline > 1 and not any(layers % 2 for layers in stages) else [])
    experts = [1]
    if shape.is_moe:
        ranks = base.tensor * base.context * base.data
        experts = [size for size in (1, 2, 4, 8, 16, 32, 64) if ranks % size == 0]
    for virtual in chunks:
        for expert in experts:
            for recompute in RECOMPUTE:
                yield replace(base, virtual_pipeline=virtual, expert=expert, recompute=recompute)


def _powers(most: int) -> list[int]:
    return [size for size in (1, 2, 4, 8) if size <= most]


def _pipelines(layers: int) -> list[tuple[int, int | None]]:
    """Return numbers of stages, and layers of the first and the last where they hold one less than others.

    That makes room for embedding and head, and divides what has no divisors (94 = 11 + 6 x 12 + 11).
    """
    even = [(size, None) for size in range(1, min(layers, 32) + 1) if layers % size == 0]
    uneven = [(size, (layers + 2) // size - 1) for size in range(3, 33) if (layers + 2) % size == 0]
    return [*even, *((size, ends) for size, ends in uneven if ends > 0)]
