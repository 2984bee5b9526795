"""What forbids a layout, and how layers fall on stages."""

import re
from dataclasses import replace

import pytest

from megatron_srpo.planner.layout import Layout, obstacle
from megatron_srpo.planner.shape import QWEN3

DENSE, MOE = QWEN3["qwen3-8b"], QWEN3["qwen3-235b-a22b"]


@pytest.mark.parametrize(
    ("layout", "reason", "words"),
    [
        (Layout(tensor=16, sequence=True), "TP does not divide key/value heads", "TP 16 does not divide 8"),
        (Layout(sequence=True), "SP without TP", "needs TP above 1"),
        (Layout(pipeline=5), "PP does not divide the layers", "36 layers do not fill 5 stages"),
        (
            Layout(pipeline=4, virtual_pipeline=2),
            "VPP does not divide a stage's layers",
            "2 chunks .* 9 layers",
        ),
        (Layout(virtual_pipeline=2), "VPP without PP", "needs PP above 1"),
        (Layout(expert=2), "EP on a dense model", "qwen3-8b has no experts"),
    ],
)
def test_a_dense_model_refuses(layout: Layout, reason: str, words: str) -> None:
    found = obstacle(DENSE, layout)
    assert found is not None and found.reason == reason
    assert re.search(words, found.message)


@pytest.mark.parametrize(
    ("layout", "reason"),
    [
        (Layout(data=8, expert=16), "EP does not divide TP x CP x DP"),
        (Layout(data=3, expert=3), "EP does not divide the experts"),
        (Layout(tensor=2, data=8, expert=16), "MoE with TP needs SP"),
        (Layout(pipeline=8, data=8), "PP does not divide the layers"),
    ],
)
def test_a_mixture_refuses(layout: Layout, reason: str) -> None:
    found = obstacle(MOE, layout)
    assert found is not None and found.reason == reason


def test_uneven_stages_hold_what_was_given() -> None:
    layout = Layout(pipeline=8, data=2, expert=2, first_stage_layers=11, last_stage_layers=11)
    assert layout.stage_layers(94) == (11, 12, 12, 12, 12, 12, 12, 11)
    assert obstacle(MOE, layout) is None
    only_last = Layout(pipeline=3, last_stage_layers=4)
    assert only_last.stage_layers(36) == (16, 16, 4)


def test_two_stages_of_their_own_sizes() -> None:
    layout = Layout(pipeline=2, first_stage_layers=20, last_stage_layers=16)
    assert layout.stage_layers(36) == (20, 16) and obstacle(DENSE, layout) is None
    assert obstacle(DENSE, replace(layout, last_stage_layers=15)) is not None


def test_optimizer_state_is_split_over_what_holds_the_same_weights() -> None:
    layout = Layout(tensor=2, pipeline=4, context=2, data=8, expert=16, sequence=True)
    assert (layout.gpus, layout.replica_gpus) == (128, 16)
    assert layout.shared_by == 16  # data x context
    assert layout.experts_shared_by == 2  # tensor x context x data / expert
    plain = replace(layout, distributed_optimizer=False)
    assert (plain.shared_by, plain.experts_shared_by) == (1, 1)


def test_a_layout_is_named_by_what_differs() -> None:
    text = str(Layout(2, 4, 2, 2, 8, 4, sequence=True, recompute="full"))
    assert text == "TP2 PP4 VPP2 CP2 EP8 DP4 SP recompute full"
    assert str(Layout()) == "TP1 PP1 DP1"
    assert str(Layout(pipeline=8, first_stage_layers=11)) == "TP1 PP8 (first 11) DP1"
