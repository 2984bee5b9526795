"""What a layer keeps for backward, counted by autograd itself."""

from dataclasses import replace

import pytest
import torch

from megatron_srpo.model.architecture import Qwen3Architecture
from megatron_srpo.model.build import build_policy
from megatron_srpo.model.packing import pack_tokens
from megatron_srpo.model.parallel import initialize_parallel
from megatron_srpo.planner.activations import (
    boundary_bytes,
    kept_layer_bytes,
    layer_bytes,
    stage_bytes,
    working_bytes,
)
from megatron_srpo.planner.layout import Layout
from megatron_srpo.planner.shape import QWEN3, ModelShape
from tests.model.tiny import SMALL
from tests.ranks import run_ranks

SIZES = {"hidden_size": 128, "intermediate_size": 320, "head_dim": 32, "num_key_value_heads": 2}
CONFIG = {**SMALL, **SIZES, "model_type": "qwen3"}
LENGTHS = (64, 64, 64, 64)


def saved_bytes(rank: int, world: int, tensor: int, dtype: torch.dtype) -> int:
    """Bytes that three layers keep more than one layer does, half of it: one layer's, weights left out."""
    groups = initialize_parallel(tensor, 1)
    batch = pack_tokens([[1] * length for length in LENGTHS])
    found = []
    for layers in (1, 3):
        arch = Qwen3Architecture.from_hf_config({**CONFIG, "num_hidden_layers": layers})
        model = build_policy(arch, groups, dtype, vocab_multiple=8)
        held = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        kept: dict[int, torch.Tensor] = {}

        def keep(
            value: torch.Tensor, kept: dict[int, torch.Tensor] = kept, held: set[int] = held
        ) -> torch.Tensor:
            if value.untyped_storage().data_ptr() not in held:
                kept[value.untyped_storage().data_ptr()] = value
            return value

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            output = model(
                batch.tokens_1T, batch.position_ids_1T, None, packed_seq_params=batch.packed_seq_params
            )
            found.append(sum(value.untyped_storage().nbytes() for value in kept.values()))
            del output
    return (found[1] - found[0]) // 2


@pytest.mark.parametrize("tensor", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_layer_of_the_local_spec_keeps_what_is_predicted(tensor: int, dtype: str) -> None:
    """To the byte."""
    shape = ModelShape.from_hf_config(CONFIG)
    layout = Layout(tensor, dtype=dtype, kernels="local")
    measured = run_ranks(tensor, saved_bytes, tensor, getattr(torch, dtype))[0]
    assert layer_bytes(shape, layout, sum(LENGTHS)) == measured


def test_the_transformer_engine_spec_by_hand() -> None:
    """Qwen3-8B, one token, bf16: 4 H + (Q + 2K) + (Q + K) + Q + 3 F elements, and fp32 statistics."""
    shape, layout = QWEN3["qwen3-8b"], Layout()
    elements = 4 * 4096 + (4096 + 2048) + (4096 + 1024) + 4096 + 3 * 12288
    assert layer_bytes(shape, layout, 1) == 2 * elements + 4 * (2 + 2 * 32 + 8)


def test_fp8_keeps_inputs_of_linears_in_one_byte() -> None:
    shape = QWEN3["qwen3-8b"]
    inputs = 2 * 4096 + 12288  # of the projections to queries and of both feed-forward linears
    expected = layer_bytes(shape, Layout(), 1) - inputs + 4096  # and the context once more
    assert layer_bytes(shape, Layout(dtype="fp8"), 1) == expected


def test_what_tensor_and_sequence_parallelism_split() -> None:
    shape = QWEN3["qwen3-32b"]
    whole, split, all_split = (
        layer_bytes(shape, layout, 4096) for layout in (Layout(), Layout(4), Layout(4, sequence=True))
    )
    stream = 4096 * 2 * 4 * shape.hidden_size
    assert split == pytest.approx(stream + (whole - stream) / 4, rel=1e-3)
    assert all_split == pytest.approx(whole / 4, rel=1e-3)
    assert layer_bytes(shape, Layout(context=2), 4096) == whole / 2


def test_recomputation_keeps_less() -> None:
    shape = QWEN3["qwen3-8b"]
    local = Layout(kernels="local")
    none, selective, full = (
        kept_layer_bytes(shape, replace(local, recompute=mode), 4096)
        for mode in ("none", "selective", "full")
    )
    assert full == 4096 * 2 * shape.hidden_size < selective < none
    assert working_bytes(shape, replace(local, recompute="full"), 4096) == 1.5 * none
    assert working_bytes(shape, local, 4096) == 0.5 * none


def test_stages_hold_their_micro_batches_in_flight() -> None:
    """1F1B: as many as stages follow, no more than there are; interleaving adds (p - 1) / (p v) of p."""
    shape, layout = QWEN3["qwen3-8b"], Layout(pipeline=4)
    one = 9 * layer_bytes(shape, layout, 4096) + boundary_bytes(shape, layout, 4096)
    assert stage_bytes(shape, layout, 0, 4096, 16) == pytest.approx(4 * one)
    assert stage_bytes(shape, layout, 2, 4096, 16) == pytest.approx(2 * one)
    assert stage_bytes(shape, layout, 0, 4096, 3) == pytest.approx(3 * one)
    last = stage_bytes(shape, layout, 3, 4096, 16)
    assert last == pytest.approx(one + 2 * boundary_bytes(shape, layout, 4096))
    interleaved = replace(layout, virtual_pipeline=3)
    assert stage_bytes(shape, interleaved, 0, 4096, 16) == pytest.approx((4 + 3 / 3) * one)


def test_experts_keep_their_routed_tokens() -> None:
    shape = QWEN3["qwen3-30b-a3b"]
    dense_part = 4 * 2048 + (4096 + 1024) + (4096 + 512) + 4096
    routed = 8 * (2 * 2048 + 3 * 768)
    statistics = 4 * (2 + 2 * 32 + 4) + 8 * 128
    assert layer_bytes(shape, Layout(), 1) == 2 * (dense_part + routed) + statistics
