"""Bytes by collective, by hand."""

import pytest

from megatron_srpo.planner.assumptions import Assumptions
from megatron_srpo.planner.communication import (
    Links,
    average_traffic,
    context_traffic,
    expert_traffic,
    gradient_traffic,
    pipeline_traffic,
    tensor_traffic,
)
from megatron_srpo.planner.hardware import GPUS
from megatron_srpo.planner.layout import Layout
from megatron_srpo.planner.parameters import rank_parameters
from megatron_srpo.planner.shape import QWEN3

DENSE, MOE = QWEN3["qwen3-8b"], QWEN3["qwen3-30b-a3b"]
LINKS = Links(GPUS["h100"], Assumptions())
NVLINK, NETWORK = 450e9 * 0.75, 50e9 * 0.8
LATENCY = Assumptions().collective_latency_s


def test_tensor_parallelism_reduces_twice_per_layer() -> None:
    """A ring's all-reduce sends 2 (n - 1) / n of the data."""
    sent = tensor_traffic(DENSE, Layout(4, sequence=True), 1000, LINKS)
    assert sent.sent == 2 * 2 * 3 / 4 * 1000 * 4096 * 2
    assert sent.link == "NVLink" and sent.seconds == pytest.approx(sent.sent / NVLINK + 4 * LATENCY)
    assert tensor_traffic(DENSE, Layout(), 1000, LINKS).seconds == 0


def test_experts_send_each_token_to_each_of_its_experts_and_back() -> None:
    inside = expert_traffic(MOE, Layout(data=8, expert=8), 1000, LINKS)
    assert inside.sent == 2 * 1000 * 8 * 2048 * 2 * 7 / 8 and inside.link == "NVLink"
    assert inside.seconds == pytest.approx(inside.sent / (450e9 * 0.15) + 2 * LATENCY)
    across = expert_traffic(MOE, Layout(data=16, expert=16), 1000, LINKS)
    assert across.link == "network"
    assert across.seconds == pytest.approx(across.sent * 8 / 15 / NETWORK + 2 * LATENCY)
    assert expert_traffic(DENSE, Layout(data=8), 1000, LINKS).sent == 0


def test_context_parallelism_passes_keys_and_values_round() -> None:
    sent = context_traffic(DENSE, Layout(2, context=4, sequence=True), 1000, LINKS)
    assert sent.sent == 3 * 1000 * 2 * 1024 / 2 * 2
    assert sent.link == "NVLink"  # 2 x 4 GPUs
    assert context_traffic(DENSE, Layout(4, context=4, sequence=True), 1000, LINKS).link == "network"


def test_pipelines_send_hidden_states_per_chunk() -> None:
    assert pipeline_traffic(DENSE, Layout(pipeline=2), 1000, LINKS).sent == 1000 * 4096 * 2
    chunks = pipeline_traffic(DENSE, Layout(4, 2, 3, sequence=True, data=4), 1000, LINKS)
    assert chunks.sent == 1000 * 4096 * 2 / 4 * 3 and chunks.link == "network"
    assert pipeline_traffic(DENSE, Layout(), 1000, LINKS).seconds == 0


def test_gradients_are_reduced_in_fp32() -> None:
    layout = Layout(data=16)
    count = rank_parameters(DENSE, layout, 0)
    scatter, gather = gradient_traffic(count, layout, LINKS)
    assert (scatter.collective, gather.collective) == ("reduce-scatter", "all-gather")
    assert scatter.sent == pytest.approx(4 * 15 / 16 * count.total)
    assert gather.sent == pytest.approx(2 * 15 / 16 * count.total)
    (reduce,) = gradient_traffic(count, Layout(data=16, distributed_optimizer=False), LINKS)
    assert reduce.sent == pytest.approx(8 * 15 / 16 * count.total)


def test_experts_are_reduced_over_fewer_ranks() -> None:
    layout = Layout(data=16, expert=8)
    count = rank_parameters(MOE, layout, 0)
    sent = {(one.name, one.collective): one.sent for one in gradient_traffic(count, layout, LINKS)}
    assert sent["expert DP gradients", "reduce-scatter"] == pytest.approx(4 * 1 / 2 * count.experts)
    assert sent["DP gradients", "reduce-scatter"] == pytest.approx(4 * 15 / 16 * count.dense)
    alone = gradient_traffic(count, Layout(data=8, expert=8), LINKS)
    assert not any("expert" in one.name for one in alone)


def test_the_teachers_average_is_gathered_in_the_weights_type() -> None:
    """Each rank makes its part, whatever the optimizer does; experts have fewer copies."""
    layout = Layout(data=16, expert=4, distributed_optimizer=False)
    count = rank_parameters(MOE, layout, 0)
    dense, experts = average_traffic(count, layout, LINKS)
    assert dense.sent == pytest.approx(2 * 15 / 16 * count.dense)
    assert experts.sent == pytest.approx(2 * 3 / 4 * count.experts)
    assert average_traffic(rank_parameters(DENSE, Layout(), 0), Layout(), LINKS) == []
