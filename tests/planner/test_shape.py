"""Sizes of models: the published family, folders, and what is refused."""

import json
from pathlib import Path

import pytest

from megatron_srpo.errors import ModelError
from megatron_srpo.planner.parameters import active_parameters, model_parameters
from megatron_srpo.planner.shape import QWEN3, ModelShape, find_model
from tests.conftest import REPOSITORY

#: Parameters of the published checkpoints: total_size / 2 of each model.safetensors.index.json (bf16), or the
#: sizes in the one safetensors header; a tied head is counted once.
PUBLISHED = {
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
}

MOE = {
    "model_type": "qwen3_moe",
    "num_hidden_layers": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 96,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "rope_theta": 1e6,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_built_in_models_have_the_published_size(name: str) -> None:
    assert model_parameters(QWEN3[name]).total == PUBLISHED[name]


@pytest.mark.parametrize(("name", "billions"), [("qwen3-30b-a3b", 3.3), ("qwen3-235b-a22b", 22.2)])
def test_active_parameters_are_about_what_the_name_says(name: str, billions: float) -> None:
    """The names count the embedding's rows as well, of which one token reads one."""
    whole = model_parameters(QWEN3[name])
    assert (active_parameters(QWEN3[name]) + whole.embedding) / 1e9 == pytest.approx(billions, abs=0.06)


def test_the_moe_formula_counts_what_transformers_builds() -> None:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = {key: value for key, value in MOE.items() if key not in ("model_type", "rope_theta")}
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**config))
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert model_parameters(ModelShape.from_hf_config(MOE)).total == counted


def test_a_folder_is_read() -> None:
    shape = find_model(str(REPOSITORY / "examples" / "models" / "qwen3-tiny"))
    config = json.loads((REPOSITORY / "examples" / "models" / "qwen3-tiny" / "config.json").read_text())
    assert (shape.name, shape.hidden_size, shape.num_layers) == (
        "qwen3-tiny",
        config["hidden_size"],
        config["num_hidden_layers"],
    )


def test_a_moe_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MOE))
    shape = find_model(str(tmp_path))
    assert (shape.num_experts, shape.experts_per_token, shape.expert_ffn_size) == (8, 2, 24)
    assert shape.is_moe and shape.ffn_hidden_size == 0


@pytest.mark.parametrize("name", ["Qwen/Qwen3-8B", "QWEN3-8b", "qwen3-8b"])
def test_names_are_found_however_they_are_written(name: str) -> None:
    assert find_model(name) is QWEN3["qwen3-8b"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_experts": 0}, "num_experts = 0"),
        ({"num_experts_per_tok": None}, "num_experts_per_tok = None"),
        ({"mlp_only_layers": [1]}, "mlp_only_layers"),
        ({"decoder_sparse_step": 2}, "decoder_sparse_step"),
        ({"model_type": "llama"}, "model_type = 'llama'"),
    ],
)
def test_configs_that_cannot_be_planned(change: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        ModelShape.from_hf_config({**MOE, **change})


def test_a_mistyped_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"did you mean qwen3-32b\? .* one of: qwen3-0\.6b"):
        find_model("qwen3-23b")
    with pytest.raises(ModelError, match="neither a model folder nor a built-in model; give a folder"):
        find_model("/nowhere/at/all")
