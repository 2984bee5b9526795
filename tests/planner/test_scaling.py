"""Scaling curves and the effects of assumptions."""

from dataclasses import fields, replace

import pytest

from megatron_srpo.planner.assumptions import MEMORY_ONLY, Assumptions, meanings
from megatron_srpo.planner.hardware import GPUS
from megatron_srpo.planner.layout import Layout
from megatron_srpo.planner.scaling import curve, curves, effects
from megatron_srpo.planner.shape import QWEN3
from megatron_srpo.planner.step import Engine, Plan, Problem, plan_step
from megatron_srpo.planner.workload import Workload

PROBLEM = Problem(QWEN3["qwen3-8b"], Workload(), GPUS["h100"], Assumptions())


@pytest.fixture(scope="module")
def first() -> Plan:
    found = plan_step(PROBLEM, Layout(2, 2, 1, 2, 1, 2, sequence=True), Engine(4, 16))
    assert isinstance(found, Plan)
    return found


def test_a_growing_batch_scales_to_thousands_with_losses(first: Plan) -> None:
    drawn = curve(PROBLEM, first, 0, 4096, grow=True)
    assert [point.gpus for point in drawn.points] == [16, 32, 64, 128, 256, 512, 1024, 2048, 4096]
    assert [point.prompts for point in drawn.points] == [32 * point.gpus // 16 for point in drawn.points]
    shares = [point.efficiency for point in drawn.points]
    assert shares[0] == 1 and shares == sorted(shares, reverse=True) and 0.5 < shares[-1] < 1
    assert drawn.ended == ""
    last = replace(PROBLEM, workload=replace(PROBLEM.workload, prompts=8192))
    assert list(drawn.effects) == effects(last, drawn.points[-1].plan)


def test_a_fixed_batch_ends_where_replicas_run_out_of_prompts(first: Plan) -> None:
    drawn = curve(PROBLEM, first, 0, 4096, grow=False)
    assert {point.prompts for point in drawn.points} == {32}
    assert drawn.points[-1].gpus == 256  # DP 32
    assert drawn.ended.startswith("512 GPUs: 32 prompts") and "DP 64" in drawn.ended
    assert drawn.points[-1].efficiency < 0.5


def test_staleness_pays() -> None:
    """Each from its own best layout: with more lag, rollouts beside training beat rollouts in turn."""
    on, off, far = curves(PROBLEM, 16, 64, (0, 1, 4), grow=True)
    assert (on.staleness, off.staleness, far.staleness) == (0, 1, 4)
    rates = [one.points[-1].plan.tokens_per_second_per_gpu for one in (on, off, far)]
    assert rates[2] > rates[0] and rates[2] > rates[1]


def test_effects_are_recomputed_steps(first: Plan) -> None:
    found = {effect.name: effect for effect in effects(PROBLEM, first)}
    assert set(found) == {one.name for one in fields(Assumptions)} - MEMORY_ONLY
    slower = replace(
        PROBLEM, assumptions=replace(PROBLEM.assumptions, matmul=0.8 * PROBLEM.assumptions.matmul)
    )
    again = plan_step(slower, first.layout, first.engine)
    assert isinstance(again, Plan)
    assert found["matmul"].low == pytest.approx(again.seconds / first.seconds - 1)
    assert found["matmul"].low > 0 > found["matmul"].high
    assert found["step_s"].high == pytest.approx(0.2 * PROBLEM.assumptions.step_s / first.seconds)
    assert found["matmul_fp8"].swing == 0  # a bf16 plan
    swings = [effect.swing for effect in effects(PROBLEM, first)]
    assert swings == sorted(swings, reverse=True) and swings[0] > 0.01


def test_every_assumption_says_what_it_is() -> None:
    assert set(meanings()) == {one.name for one in fields(Assumptions)}
    assert all(len(text) > 10 for text in meanings().values())
