"""The lines of a study's table: what was measured, what was predicted, and how both scale."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tools.scaling.measure import Measured
from tools.scaling.predict import Predicted


@dataclass(frozen=True)
class Result:
    """One line: a run in one mode.

    Attributes:
        train_gpus: ranks, each with one.
        servers: that sample; 0 with the local engine.
        server_gpus: of servers that have GPUs for themselves; 0 where they share the ranks'.
        reason: why nothing was measured; empty when something was.
        predicted: None where the planner was not asked.
    """

    mode: str
    nodes: int
    rollout_nodes: int
    staleness: int
    prompts: int
    train_gpus: int
    servers: int
    server_gpus: int
    folder: str
    reason: str = ""
    measured: Measured | None = None
    predicted: Predicted | None = None

    @property
    def gpus(self) -> int:
        """All GPUs: what tokens/s/GPU divides by."""
        return self.train_gpus + self.server_gpus

    @property
    def rate(self) -> float | None:
        """Tokens per second, measured."""
        return self.measured.rate.mean if self.measured else None

    @property
    def predicted_rate(self) -> float | None:
        """Tokens per second, predicted."""
        known = self.predicted is not None and not self.predicted.obstacle
        return self.predicted.rate_per_gpu * self.gpus if known and self.predicted else None


@dataclass(frozen=True)
class Scaled:
    """A line beside the first of its curve (mode and staleness), which has the fewest nodes measured.

    Attributes:
        speed_up: tokens/s over that of the first line.
        efficiency: tokens/s/GPU over that of the first line.
    """

    result: Result
    first_nodes: int | None
    speed_up: float | None
    efficiency: float | None
    predicted_speed_up: float | None
    predicted_efficiency: float | None


def scale(results: Sequence[Result]) -> list[Scaled]:
    """Compare every line with the first of its curve."""
    found = []
    for one in results:
        curve = [other for other in results if (other.mode, other.staleness) == (one.mode, one.staleness)]
        first = next((other for other in curve if other.rate is not None), None)
        speed, each = _ratios(one, first, lambda line: line.rate)
        predicted, predicted_each = _ratios(one, first, lambda line: line.predicted_rate)
        nodes = first.nodes if first else None
        found.append(Scaled(one, nodes, speed, each, predicted, predicted_each))
    return found


def curves(lines: Sequence[Scaled], mode: str) -> Iterator[tuple[int, list[Scaled]]]:
    """Yield each staleness of a mode with its lines that were measured."""
    measured = [line for line in lines if line.result.mode == mode and line.result.measured]
    for staleness in sorted({line.result.staleness for line in measured}):
        yield staleness, [line for line in measured if line.result.staleness == staleness]


def staleness_name(steps: int) -> str:
    """Return how a curve is called."""
    return f"{steps}-off" if steps else "on-policy"


def _ratios(
    one: Result, first: Result | None, rate: Callable[[Result], float | None]
) -> tuple[float | None, float | None]:
    """Return the ratio of two lines' rates, and that of their rates per GPU."""
    ours, theirs = rate(one), rate(first) if first else None
    if ours is None or theirs is None or first is None:
        return None, None
    return ours / theirs, (ours / one.gpus) / (theirs / first.gpus)
