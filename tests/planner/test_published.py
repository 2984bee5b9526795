"""Predictions beside published numbers: the table in the documentation is this function's output."""

import re

import pytest

from megatron_srpo.planner.answer import CURVE_STALENESS
from megatron_srpo.planner.assumptions import Assumptions
from megatron_srpo.planner.hardware import GPUS
from megatron_srpo.planner.published import SOURCES, comparisons, trainer_memory
from megatron_srpo.planner.scaling import curves
from megatron_srpo.planner.shape import QWEN3
from megatron_srpo.planner.step import Problem
from megatron_srpo.planner.text import curve_table, error_summary, published_table, source_list
from megatron_srpo.planner.workload import Workload
from tests.conftest import REPOSITORY

PAGE = (REPOSITORY / "docs" / "plan.md").read_text(encoding="utf-8")
ROWS = comparisons()


def example(grow: bool) -> str:
    """Return the page's scaling tables."""
    work = Workload(prompts=128 if grow else 512)
    problem = Problem(QWEN3["qwen3-8b"], work, GPUS["h100"], Assumptions())
    return curve_table(curves(problem, 64, 4096, CURVE_STALENESS, grow))


def squeezed(text: str) -> str:
    return re.sub(r" +", " ", text)


def test_the_documented_table_is_computed() -> None:
    assert squeezed(published_table(ROWS)) in squeezed(PAGE)
    assert error_summary(ROWS) in PAGE
    assert source_list() in PAGE


@pytest.mark.parametrize("grow", [True, False])
def test_the_documented_curves_are_computed(grow: bool) -> None:
    assert squeezed(example(grow)) in squeezed(PAGE)


def test_every_source_is_used() -> None:
    assert {row.source for row in ROWS} == set(SOURCES)
    assert len(ROWS) >= 21 and sum(row.held_out for row in ROWS) == 2
    assert all(row.value > 0 and row.predicted > 0 for row in ROWS)


def test_errors_are_relative_to_what_was_published() -> None:
    assert all(row.error == pytest.approx((row.predicted - row.value) / row.value) for row in ROWS)


def test_predictions_are_no_further_off_than_the_page_says() -> None:
    """The page names the worst row; nothing may drift beyond it unnoticed."""
    assert max(abs(row.error) for row in ROWS) < 0.55
    assert sum(abs(row.error) for row in ROWS) / len(ROWS) < 0.25


def test_predictions_follow_the_assumptions() -> None:
    """No row is a constant: halving what matrix products and decode steps achieve slows every step."""
    slow = Assumptions(
        matmul=0.27,
        matmul_fp8=0.26,
        expert_matmul=0.14,
        decode_bandwidth=0.32,
        sync_link=0.15,
        all_to_all=0.07,
    )
    for before, after in zip(ROWS, comparisons(slow), strict=True):
        slower = (
            after.predicted > before.predicted
            if before.unit != "tokens/s/GPU"
            else (after.predicted < before.predicted)
        )
        assert slower, before.what


def test_trainers_that_ran_fit_their_gpus() -> None:
    """Not by much in places: the fullest needs nine tenths, so the prediction is no idle lower bound."""
    needs = [size / GPUS["h100"].memory_bytes for _, size in trainer_memory()]
    assert len(needs) == 11 and max(needs) < 1.0
    assert max(needs) > 0.9
