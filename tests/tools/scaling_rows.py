"""Metrics of made-up runs, with numbers that can be checked by hand."""

from typing import Any

from tools.scaling.measure import Measured, measure
from tools.scaling.results import Result

ROLLOUTS = 8


def row(step: int, seconds: float, **more: float) -> dict[str, Any]:
    """Return a step of ``seconds``, a quarter of it waiting: 800 tokens, 600 of them in responses."""
    return {
        "step": step,
        "time/step": seconds,
        "time/generate": seconds / 4,
        "time/update": seconds * 3 / 4,
        "tokens/total": 800.0,
        "tokens/response": 600.0,
        **more,
    }


def measured(seconds: float) -> Measured:
    """Return two counted steps of ``seconds`` each after one slow one."""
    return measure([row(1, 100.0), row(2, seconds), row(3, seconds)], 1, ROLLOUTS)


def result(mode: str, nodes: int, seconds: float | None, **more: Any) -> Result:
    """Return a line of the table: one rank per node; without ``seconds`` a failed one."""
    given: dict[str, Any] = {
        "rollout_nodes": 0,
        "staleness": 0,
        "prompts": 4,
        "train_gpus": nodes,
        "servers": 0,
        "server_gpus": 0,
        "folder": f"points/{mode}-n{nodes}-k0",
        "reason": "" if seconds else "out | of\nmemory",
        "measured": measured(seconds) if seconds else None,
    }
    return Result(mode=mode, nodes=nodes, **(given | more))
