"""Plans as JSON: every number of the text, and the assumptions behind them."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from megatron_srpo.planner.parameters import active_parameters, model_parameters
from megatron_srpo.planner.published import Published
from megatron_srpo.planner.scaling import Curve, Effect
from megatron_srpo.planner.search import Found
from megatron_srpo.planner.step import Plan, Problem


def problem_record(problem: Problem) -> dict[str, Any]:
    """Return model, workload, GPU and assumptions; bytes and seconds throughout."""
    return {
        "model": asdict(problem.shape),
        "parameters": {
            **asdict(model_parameters(problem.shape)),
            "total": model_parameters(problem.shape).total,
        },
        "active_parameters": active_parameters(problem.shape),
        "workload": asdict(problem.workload),
        "gpu": asdict(problem.gpu),
        "assumptions": asdict(problem.assumptions),
    }


def plan_record(plan: Plan) -> dict[str, Any]:
    """Return everything about one plan."""
    record = asdict(plan)
    record["memory"]["total"] = plan.memory.total
    return record


def found_record(found: Found) -> dict[str, Any]:
    """Return a search: plans, best first, and failures by reason."""
    failures = []
    for failure in found.failures:
        record = asdict(failure)
        # Infinity is no JSON.
        record["miss"] = failure.miss if math.isfinite(failure.miss) else None
        failures.append(record)
    return {"tried": found.tried, "plans": [plan_record(plan) for plan in found.plans], "failures": failures}


def curve_record(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """Return scaling curves."""
    return [
        {
            "staleness": one.staleness,
            "ended": one.ended or None,
            "assumptions": effect_record(one.effects),
            "points": [
                {
                    "gpus": point.gpus,
                    "prompts": point.prompts,
                    "efficiency": point.efficiency,
                    "plan": plan_record(point.plan),
                }
                for point in one.points
            ],
        }
        for one in curves
    ]


def effect_record(effects: Sequence[Effect]) -> list[dict[str, Any]]:
    """Return the assumptions' effects, the largest first."""
    return [
        {name: value if not isinstance(value, float) or math.isfinite(value) else None
         for name, value in asdict(effect).items()}
        for effect in effects
    ]  # fmt: skip


def published_record(rows: Sequence[Published]) -> list[dict[str, Any]]:
    """Return published rows with predictions and errors."""
    return [{**asdict(row), "error": row.error} for row in rows]
