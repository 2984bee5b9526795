"""The search: what it tries, what it finds, and what it says of the rest."""

import itertools
from dataclasses import replace
from typing import Any

import pytest

from megatron_srpo.planner.assumptions import Assumptions
from megatron_srpo.planner.hardware import GPUS
from megatron_srpo.planner.layout import Layout, Obstacle
from megatron_srpo.planner.search import Found, candidates, search
from megatron_srpo.planner.shape import QWEN3
from megatron_srpo.planner.step import Engine, Plan, Problem, plan_step
from megatron_srpo.planner.workload import Workload


def problem(name: str, **changes: Any) -> Problem:
    return Problem(QWEN3[name], Workload(**changes), GPUS["h100"], Assumptions())


@pytest.fixture(scope="module")
def found() -> Found:
    return search(problem("qwen3-8b"), 16)


def test_every_plan_uses_the_gpus_and_fits(found: Found) -> None:
    assert len(found.plans) == 5
    for plan in found.plans:
        assert plan.gpus == 16
        again = plan_step(problem("qwen3-8b"), plan.layout, plan.engine)
        assert isinstance(again, Plan) and again.seconds == plan.seconds


def test_the_best_is_the_best_of_all(found: Found) -> None:
    task = problem("qwen3-8b")
    results = [plan_step(task, *candidate) for candidate in candidates(task, 16, Layout())]
    fitting = [result for result in results if isinstance(result, Plan)]
    assert found.plans[0].seconds == min(plan.seconds for plan in fitting)
    rates = [plan.tokens_per_second_per_gpu for plan in found.plans]
    assert rates == sorted(rates, reverse=True)
    assert sum(failure.count for failure in found.failures) == len(results) - len(fitting)


def test_failures_are_counted_with_their_nearest_miss(found: Found) -> None:
    task = problem("qwen3-8b")
    counts = [failure.count for failure in found.failures]
    assert counts == sorted(counts, reverse=True)
    (memory,) = [failure for failure in found.failures if failure.reason == "trainer's memory"]
    misses = []
    for candidate in candidates(task, 16, Layout()):
        result = plan_step(task, *candidate)
        if isinstance(result, Obstacle) and result.reason == "trainer's memory":
            misses.append(result.miss)
    assert (memory.count, memory.miss) == (len(misses), min(misses))
    nearest = plan_step(task, memory.layout, memory.engine)
    assert isinstance(nearest, Obstacle) and nearest.message == memory.message


def test_too_few_gpus_for_a_large_model() -> None:
    found = search(problem("qwen3-235b-a22b"), 16)
    assert found.plans == ()
    assert any(failure.reason == "trainer's memory" and failure.miss > 1.5 for failure in found.failures)


def test_nothing_is_recomputed_that_fits_without() -> None:
    for one, other in itertools.combinations(search(problem("qwen3-8b"), 16, keep=1000).plans, 2):
        layouts = (replace(one.layout, recompute="none"), replace(other.layout, recompute="none"))
        assert (layouts[0], one.engine) != (layouts[1], other.engine)


def test_mixtures_are_tried_with_expert_parallelism() -> None:
    """What EP is for: with all experts on every GPU, they alone are too much."""
    task = problem("qwen3-30b-a3b", teacher="live")
    layouts = {layout for layout, _ in candidates(task, 32, Layout())}
    assert {layout.expert for layout in layouts} >= {1, 2, 4, 8, 16, 32}
    assert all(layout.sequence for layout in layouts if layout.tensor > 1)
    spread = Layout(data=32, expert=8, recompute="full")
    beside = Engine(2, 32, colocated=False)
    assert isinstance(plan_step(task, spread, beside), Plan)
    whole = plan_step(task, replace(spread, expert=1), beside)
    assert isinstance(whole, Obstacle) and whole.reason == "trainer's memory"


def test_uneven_stages_are_tried_where_nothing_divides() -> None:
    """94 layers have no useful divisors; with one layer less at the ends they fill 3, 4, 6, 8 ... stages."""
    tried = {layout for layout, _ in candidates(problem("qwen3-235b-a22b"), 64, Layout())}
    stages = {layout.pipeline: layout.stage_layers(94) for layout in tried}
    assert stages[8] == (11, *[12] * 6, 11) and stages[4] == (23, 24, 24, 23) and stages[2] == (47, 47)
    assert all(sum(sizes) == 94 for sizes in stages.values())


def test_stale_rollouts_are_tried_beside_training_only() -> None:
    engines = {engine for _, engine in candidates(problem("qwen3-8b", staleness=1), 16, Layout())}
    assert engines and not any(engine.colocated for engine in engines)
