"""How a plan goes on to more GPUs, and which assumption decides it."""

from dataclasses import dataclass, fields, replace

from megatron_srpo.planner.assumptions import MEMORY_ONLY, Assumptions
from megatron_srpo.planner.layout import Obstacle
from megatron_srpo.planner.search import search
from megatron_srpo.planner.step import Engine, Plan, Problem, plan_step

#: Each assumption is varied by this share, up and down.
VARIATION = 0.2


@dataclass(frozen=True)
class Point:
    """One number of GPUs of a curve.

    Attributes:
        prompts: per step; grown with the GPUs, or kept.
        efficiency: tokens per second and GPU, as a share of the curve's first point.
    """

    gpus: int
    prompts: int
    plan: Plan
    efficiency: float


@dataclass(frozen=True)
class Effect:
    """What one assumption does: seconds of a step with it a fifth lower and higher, as shares of the plan's.

    ``low`` and ``high`` are relative changes of the step's seconds.
    """

    name: str
    value: float
    low: float
    high: float

    @property
    def swing(self) -> float:
        """The larger of both changes."""
        return max(abs(self.low), abs(self.high))


@dataclass(frozen=True)
class Curve:
    """One way of running (its staleness) over numbers of GPUs.

    Attributes:
        ended: the first number of GPUs that failed, and why; empty where none did.
        effects: of the assumptions at the last point, the largest first.
    """

    staleness: int
    points: tuple[Point, ...]
    ended: str
    effects: tuple[Effect, ...]


def curve(problem: Problem, first: Plan, staleness: int, most: int, grow: bool) -> Curve:
    """Multiply a plan's replicas and servers by 2, 4, ... up to ``most`` GPUs.

    Args:
        grow: let the prompts per step grow alike (weak scaling); else the batch stays (strong scaling).
    """
    points: list[Point] = []
    times, ended = 1, ""
    found: tuple[Effect, ...] = ()
    while first.gpus * times <= most:
        prompts = problem.workload.prompts * (times if grow else 1)
        larger = replace(problem, workload=replace(problem.workload, prompts=prompts, staleness=staleness))
        plan = plan_step(
            larger,
            replace(first.layout, data=first.layout.data * times),
            Engine(first.engine.tensor, first.engine.gpus * times, first.engine.colocated),
        )
        if isinstance(plan, Obstacle):
            ended = f"{first.gpus * times} GPUs: {plan.message}"
            break
        base = points[0].plan if points else plan
        efficiency = plan.tokens_per_second_per_gpu / base.tokens_per_second_per_gpu
        points.append(Point(first.gpus * times, prompts, plan, efficiency))
        found = tuple(effects(larger, plan))
        times *= 2
    return Curve(staleness, tuple(points), ended, found)


def curves(problem: Problem, gpus: int, most: int, staleness: tuple[int, ...], grow: bool) -> list[Curve]:
    """Draw one curve per staleness, each from the best layout for ``gpus`` GPUs under that staleness."""
    found = []
    for steps in staleness:
        stale = replace(problem, workload=replace(problem.workload, staleness=steps))
        plans = search(stale, gpus, keep=1).plans
        if plans:
            found.append(curve(problem, plans[0], steps, most, grow))
    return found


def effects(problem: Problem, plan: Plan) -> list[Effect]:
    """Vary each assumption by a fifth; return the effects on the step's seconds, the largest first."""
    found = []
    for one in fields(Assumptions):
        if one.name in MEMORY_ONLY:
            continue
        value = vars(problem.assumptions)[one.name]
        low, high = (_changed(problem, plan, one.name, value * (1 + sign * VARIATION)) for sign in (-1, 1))
        found.append(Effect(one.name, value, low, high))
    return sorted(found, key=lambda effect: -effect.swing)


def _changed(problem: Problem, plan: Plan, name: str, value: float) -> float:
    """Return the relative change of a step's seconds under another value of one assumption."""
    other = replace(problem, assumptions=replace(problem.assumptions, **{name: value}))
    again = plan_step(other, plan.layout, plan.engine)
    return float("inf") if isinstance(again, Obstacle) else again.seconds / plan.seconds - 1.0
