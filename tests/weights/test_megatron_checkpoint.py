"""Model-only checkpoints: resharding on load, data-parallel replicas, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megatron_srpo.errors import CheckpointError
from megatron_srpo.model.architecture import Qwen3Architecture
from tests.model.tiny import load_reference, write_random_qwen3
from tests.ranks import run_ranks


def _model(folder: Path, tp: int, pp: int, fill: bool, dtype: torch.dtype = torch.float32) -> tuple:
    from megatron_srpo.model.build import build_policy
    from megatron_srpo.model.parallel import initialize_parallel
    from megatron_srpo.weights.load import load_hf

    groups = initialize_parallel(tp, pp)
    arch = Qwen3Architecture.from_hf_folder(folder)
    model = build_policy(arch, groups, dtype)
    if fill:
        load_hf(model, arch, folder, groups)
    return model, arch, groups


def save(rank: int, world: int, source: Path, target: Path, tp: int, pp: int, dtype: torch.dtype) -> Any:
    from megatron_srpo.weights.megatron_checkpoint import save_megatron, stored_dtype

    model, arch, groups = _model(source, tp, pp, fill=True, dtype=dtype)
    save_megatron(model, arch, groups, target, source)
    return stored_dtype(target)


def load(rank: int, world: int, source: Path, checkpoint: Path, tp: int, pp: int) -> dict[str, torch.Tensor]:
    from megatron_srpo.weights.gather import hf_tensors
    from megatron_srpo.weights.megatron_checkpoint import load_megatron

    model, arch, groups = _model(source, tp, pp, fill=False)
    load_megatron(model, checkpoint)
    padding = [
        parameter[96:].abs().sum().item()
        for name, parameter in model.named_parameters()
        if name.startswith(("embedding", "output")) and groups.tp_size == 1
    ]
    assert not any(padding), "padding rows stay 0"
    return dict(hf_tensors(model, arch, groups))


def test_replicas_write_one_checkpoint_and_any_layout_reads_it(tmp_path):
    source, checkpoint = write_random_qwen3(tmp_path / "source"), tmp_path / "checkpoint"
    expected = load_reference(source).state_dict()
    # two data-parallel replicas of one rank each write; then TP 2 with two replicas, and PP 2, read
    assert run_ranks(2, save, source, checkpoint, 1, 1, torch.float32) == [torch.float32] * 2
    for world, tp, pp in ((4, 2, 1), (2, 1, 2), (1, 1, 1)):
        for tensors in run_ranks(world, load, source, checkpoint, tp, pp):
            assert tensors.keys() == expected.keys()
            assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_the_folder_says_what_it_holds(tmp_path):
    source, checkpoint = write_random_qwen3(tmp_path / "source"), tmp_path / "checkpoint"
    assert run_ranks(1, save, source, checkpoint, 1, 1, torch.bfloat16) == [torch.bfloat16]
    info = json.loads((checkpoint / "checkpoint.json").read_text())
    assert info["format"] == 1 and info["dtype"] == "bfloat16"
    assert info["architecture"]["hidden_size"] == 32
    assert info["written_by"].keys() == {
        "megatron_core",
        "tensor_parallel",
        "pipeline_parallel",
        "expert_parallel",
    }
    assert Qwen3Architecture.from_hf_folder(checkpoint) == Qwen3Architecture.from_hf_folder(source)
    assert json.loads((checkpoint / "config.json").read_text())["dtype"] == "bfloat16"


def foreign(rank: int, world: int, folder: Path) -> list[str]:
    """Save something that is no GPT model; return what reading it as one says."""
    from megatron_srpo.model.megatron_core import dist_checkpointing
    from megatron_srpo.weights.megatron_checkpoint import stored_dtype, weights_folder

    folder.mkdir()
    tensor = dist_checkpointing.ShardedTensor.from_rank_offsets("other.weight", torch.ones(2))
    dist_checkpointing.save({"x": tensor}, str(folder), sharded_strategy=("torch_dist", 1))
    assert weights_folder(folder) == folder
    messages = []
    for action in (lambda: stored_dtype(folder), lambda: weights_folder(folder.parent)):
        try:
            messages.append(str(action()))
        except CheckpointError as error:
            messages.append(str(error))
    return messages


def test_other_folders_are_refused(tmp_path):
    other, none = run_ranks(1, foreign, tmp_path / "other")[0]
    assert "it is not a checkpoint of a GPT model" in other
    assert "holds no finished Megatron checkpoint" in none


def export(rank: int, world: int, source: Path, target: Path, dtype: torch.dtype) -> None:
    from megatron_srpo.weights.export import save_hf

    model, arch, groups = _model(source, world, 1, fill=True)
    save_hf(model, arch, groups, target, source, dtype=dtype)


def test_export_can_change_the_type(tmp_path):
    source = write_random_qwen3(tmp_path / "source")
    run_ranks(2, export, source, tmp_path / "hf", torch.bfloat16)
    expected = load_reference(source).state_dict()
    got = load_reference(tmp_path / "hf").state_dict()  # loaded in fp32, which is exact
    assert all(torch.equal(got[name], expected[name].bfloat16().float()) for name in expected)
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["dtype"] == "bfloat16"


def export_to_full_disk(rank: int, world: int, source: Path, target: Path) -> str:
    from megatron_srpo.weights import export as module

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    original = module.write_files
    module.write_files = full
    try:
        export(rank, world, source, target, torch.float32)
    except CheckpointError as error:
        return str(error)
    finally:
        module.write_files = original
    return "written"


def test_a_full_disk_is_an_error_and_leaves_no_folder(tmp_path):
    source = write_random_qwen3(tmp_path / "source")
    message = run_ranks(1, export_to_full_disk, source, tmp_path / "hf")[0]
    assert "cannot write" in message and "No space left on device" in message
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize("tied", [False, True])
def test_the_state_has_megatrons_canonical_keys(tmp_path, tied):
    source = write_random_qwen3(tmp_path, tie_word_embeddings=tied)
    keys = run_ranks(1, state_keys, source)[0]
    # the names that other Megatron-based tools use, the Transformer Engine spec's included
    assert "decoder.layers.self_attention.linear_qkv.layer_norm_weight" in keys
    assert "decoder.layers.mlp.linear_fc1.layer_norm_weight" in keys
    assert {"embedding.word_embeddings.weight", "decoder.final_layernorm.weight"} <= keys
    assert ("output_layer.weight" in keys) == (not tied)


def state_keys(rank: int, world: int, source: Path) -> set[str]:
    model, _, _ = _model(source, 1, 1, fill=False)
    state = model.sharded_state_dict(metadata={"dp_cp_group": dist.group.WORLD})
    return {value.key for value in state.values()}
