"""config.json against what Megatron-Core builds: agreement, and every kind of disagreement named."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from megatron_srpo.config.model import ModelConfig, ParallelConfig
from megatron_srpo.doctor.megatron_config import (
    Pair,
    Sizes,
    check_layout_of_model,
    check_megatron_config,
    judge,
    pairs,
)
from megatron_srpo.model.architecture import Qwen3Architecture
from megatron_srpo.model.stages import PipelineStages
from tests.model.tiny import EXPERTS, write_random_qwen3
from tests.ranks import run_ranks

FOUR_LAYERS = {**EXPERTS, "num_hidden_layers": 4}
MODELS: dict[str, dict[str, Any]] = {
    "dense": {"vocab_size": 100},
    "tied": {"tie_word_embeddings": True, "rms_norm_eps": 1e-5},
    "experts": EXPERTS,
    "experts, not renormalised": {**EXPERTS, "norm_topk_prob": False},
    "experts in every second layer": {**FOUR_LAYERS, "decoder_sparse_step": 2},
    "experts but in layer 2": {**FOUR_LAYERS, "mlp_only_layers": [2]},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        name: write_random_qwen3(tmp_path_factory.mktemp("model"), **overrides)
        for name, overrides in MODELS.items()
    }


def content(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("layout", [ParallelConfig(), ParallelConfig(tensor=2, pipeline=2, context=2)])
def test_what_we_build_agrees(folders: dict[str, Path], name: str, layout: ParallelConfig) -> None:
    if "experts" in name:
        layout = dataclasses.replace(layout, expert=2)
    model = ModelConfig(path=str(folders[name]), dtype="bfloat16", vocab_multiple=16)
    check = check_megatron_config(folders[name], model, layout, "full")
    assert (check.status, check.remedy) == ("ok", ""), check.detail
    assert "hidden_size 32" in check.detail and "num_key_value_heads -> num_query_groups 2" in check.detail
    assert ("moe_router_topk 2" in check.detail) == ("experts" in name)
    if name == "dense":
        assert f"vocab_size {112 if layout.tensor == 1 else 128}" in check.detail
    if name == "experts but in layer 2":
        assert "moe_layer_freq 0, 1, 3" in check.detail


def built(rank: int, world: int, folder: str) -> list[Pair]:
    """Compare the file with the model itself, and with what its attributes say."""
    from megatron_srpo.model.build import build_policy
    from megatron_srpo.model.parallel import initialize_parallel

    arch = Qwen3Architecture.from_hf_folder(folder)
    model = build_policy(arch, initialize_parallel(1, 1), vocab_multiple=16)
    names = ("vocab_size", "max_sequence_length", "share_embeddings_and_output_weights")
    arguments = {name: getattr(model, name) for name in (*names, "position_embedding_type", "rotary_base")}
    return pairs(content(Path(folder)), model.config, arguments, 16)


@pytest.mark.parametrize("name", ["dense", "experts in every second layer"])
def test_a_model_on_a_rank_says_the_same(folders: dict[str, Path], name: str) -> None:
    """The doctor builds no model; here is one: nothing is lost between the config and the model."""
    found = run_ranks(1, built, str(folders[name]))[0]
    assert [str(pair) for pair in found if not pair.same] == []
    assert len(found) > 20


def parts(folder: Path) -> tuple[dict[str, Any], Any, dict[str, Any]]:
    from torch import float32

    from megatron_srpo.model.build import model_arguments, transformer_config

    arch = Qwen3Architecture.from_hf_folder(folder)
    return (
        content(folder),
        transformer_config(arch, Sizes(1, 1, 1, False, PipelineStages()), float32),
        model_arguments(arch, 1, 16),
    )


# A key of config.json, another value, and the field of Megatron-Core that then disagrees.
ALTERED = [
    ("num_hidden_layers", 6, "num_layers"),
    ("hidden_size", 64, "hidden_size"),
    ("intermediate_size", 50, "ffn_hidden_size"),
    ("num_attention_heads", 8, "num_attention_heads"),
    ("num_key_value_heads", 1, "num_query_groups"),
    ("head_dim", 8, "kv_channels"),
    ("rms_norm_eps", 1e-5, "layernorm_epsilon"),
    ("vocab_size", 97, "vocab_size"),
    ("max_position_embeddings", 1024, "max_sequence_length"),
    ("tie_word_embeddings", True, "share_embeddings_and_output_weights"),
    ("rope_parameters", {"rope_theta": 1e6}, "rotary_base"),
    ("hidden_act", "gelu", "activation_func"),
    ("attention_bias", True, "add_qkv_bias"),
    ("num_experts", 8, "num_moe_experts"),
    ("num_experts_per_tok", 1, "moe_router_topk"),
    ("moe_intermediate_size", 25, "moe_ffn_hidden_size"),
    ("norm_topk_prob", False, "moe_router_pre_softmax"),
    ("mlp_only_layers", [0], "moe_layer_freq"),
    ("decoder_sparse_step", 2, "moe_layer_freq"),
]


@pytest.mark.parametrize(("key", "value", "field"), ALTERED)
def test_every_key_that_differs_is_named(folders: dict[str, Path], key: str, value: Any, field: str) -> None:
    file, config, arguments = parts(folders["experts"])
    assert judge(pairs(file, config, arguments, 16)).status == "ok"
    if key == "num_experts" and key not in file:
        key = "num_local_experts"
    assert file.get(key) != value
    check = judge(pairs({**file, key: value}, config, arguments, 16))
    assert check.status == "fail" and "report it" in check.remedy
    assert field in check.detail
    assert check.detail.count(", built ") == 1, check.detail  # and nothing that agrees


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("qk_layernorm", False),
        ("normalization", "LayerNorm"),
        ("gated_linear_unit", False),
        ("hidden_dropout", 0.1),
    ],
)
def test_what_the_file_does_not_say_is_compared_too(folders: dict[str, Path], field: str, value: Any) -> None:
    file, config, arguments = parts(folders["dense"])
    setattr(config, field, value)
    check = judge(pairs(file, config, arguments, 16))
    assert check.status == "fail" and f"{field}: " in check.detail and f"built {value}" in check.detail


def test_experts_where_the_file_has_none(folders: dict[str, Path]) -> None:
    file, config, arguments = parts(folders["dense"])
    config.num_moe_experts = 4
    assert "num_moe_experts: None, built 4" in judge(pairs(file, config, arguments, 16)).detail


def test_a_published_file_of_transformers_4(folders: dict[str, Path]) -> None:
    """RoPE's base on the top level, experts under their first name."""
    file, config, arguments = parts(folders["experts"])
    old = {key: value for key, value in file.items() if key not in ("rope_parameters", "num_local_experts")}
    old |= {"rope_theta": 10000.0, "num_experts": 4}
    assert judge(pairs(old, config, arguments, 16)).status == "ok"
    assert "rotary_base" in judge(pairs({**old, "rope_theta": 5e5}, config, arguments, 16)).detail


LAYOUTS: list[tuple[str, Mapping[str, int], str]] = [
    ("dense", {"tensor": 4}, "4 does not divide the model's 2 key/value heads"),
    ("dense", {"pipeline": 3}, "3 does not divide the model's 2 layers"),
    ("dense", {"expert": 2}, "the model has no experts"),
    ("experts", {"expert": 3}, "3 does not divide the model's 4 experts"),
    ("experts", {"tensor": 2}, "parallel.expert a multiple of it"),
]


@pytest.mark.parametrize(("name", "sizes", "message"), LAYOUTS)
def test_a_layout_that_cannot_split_the_model(
    folders: dict[str, Path], name: str, sizes: dict[str, int], message: str
) -> None:
    arch = Qwen3Architecture.from_hf_folder(folders[name])
    check = check_layout_of_model(arch, ParallelConfig(**sizes))
    assert check.status == "fail" and message in check.detail and "parallel" in check.remedy


def test_what_megatron_refuses_is_a_finding(folders: dict[str, Path]) -> None:
    """A size that our own check of the layout would have refused before."""
    layout = ParallelConfig(tensor=3)
    check = check_megatron_config(folders["dense"], ModelConfig(path="x"), layout, "none")
    assert check.status == "fail" and check.detail.startswith("Megatron-Core refuses it: ")
    assert "tensor_model_parallel_size (3)" in check.detail
