"""What the metrics of one run say about its speed."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_srpo.errors import DataError
from megatron_srpo.report.metrics import Row
from megatron_srpo.session.recording import TRAINING_PHASES


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over steps; of one step alone there is no deviation."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Describe at least one value."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


@dataclass(frozen=True)
class Measured:
    """The counted steps of a run.

    Attributes:
        steps: how many they are.
        seconds: per step and phase; a step is the sum of its phases.
        step: seconds per step.
        tokens: of prompts and responses, per step, all ranks together.
        rate: tokens per second; its mean is all tokens over all seconds.
        sync_bytes: sent to each server per step; None where there are none.
        staleness: mean, in steps, of the weights that sampled; None where metrics do not say.
        prompt_tokens, response_tokens: mean of a rollout.
        distilled_share: of rollouts; None where metrics do not say.
    """

    steps: int
    seconds: dict[str, Spread]
    step: Spread
    tokens: float
    rate: Spread
    sync_bytes: float | None
    staleness: float | None
    prompt_tokens: float
    response_tokens: float
    distilled_share: float | None


def measure(rows: Sequence[Row], warmup: int, rollouts: int) -> Measured:
    """Summarise the steps after the first ``warmup`` ones.

    Args:
        rollouts: per step.

    Raises:
        DataError: there are none.
    """
    counted = [row for row in rows if int(row.get("step") or 0) > warmup and row.get("time/step")]
    if not counted:
        raise DataError(f"metrics.jsonl has no timed step after step {warmup}; raise --steps")
    seconds, tokens = _values(counted, "time/step"), _values(counted, "tokens/total")
    responses = sum(_values(counted, "tokens/response"))
    each = len(counted) * rollouts
    rates = Spread.of([total / one for total, one in zip(tokens, seconds, strict=True)])
    return Measured(
        steps=len(counted),
        seconds={name: _phase(counted, name) for name in TRAINING_PHASES},
        step=Spread.of(seconds),
        tokens=sum(tokens) / len(counted),
        rate=Spread(sum(tokens) / sum(seconds), rates.deviation),
        sync_bytes=_mean(counted, "sync/bytes"),
        staleness=_mean(counted, "staleness/mean"),
        prompt_tokens=(sum(tokens) - responses) / each,
        response_tokens=responses / each,
        distilled_share=_mean(counted, "route/distill_share"),
    )


def _values(rows: Sequence[Row], name: str) -> list[float]:
    return [float(value) for row in rows if (value := row.get(name)) is not None]


def _phase(rows: Sequence[Row], name: str) -> Spread:
    """Describe a phase; a step without it spent no time in it."""
    return Spread.of([float(row.get(f"time/{name}") or 0.0) for row in rows])


def _mean(rows: Sequence[Row], name: str) -> float | None:
    values = _values(rows, name)
    return statistics.fmean(values) if values else None
