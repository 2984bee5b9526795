"""Reading config.json, refusing other models, and the arithmetic of layouts."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_srpo.errors import ConfigError, ModelError
from megatron_srpo.model.architecture import Experts, Qwen3Architecture, check_layout
from megatron_srpo.model.stages import PipelineStages

QWEN3_4B = {  # as published (transformers 4 keys)
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2560,
    "initializer_range": 0.02,
    "intermediate_size": 9728,
    "max_position_embeddings": 40960,
    "max_window_layers": 36,
    "model_type": "qwen3",
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}

QWEN3_30B_A3B = {  # as published, where it differs from the dense one
    **QWEN3_4B,
    "architectures": ["Qwen3MoeForCausalLM"],
    "decoder_sparse_step": 1,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "max_window_layers": 48,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
    "tie_word_embeddings": False,
}

QWEN3_235B_A22B = {
    **QWEN3_30B_A3B,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "max_window_layers": 94,
    "moe_intermediate_size": 1536,
    "num_attention_heads": 64,
    "num_hidden_layers": 94,
}


def test_reads_a_published_config():
    arch = Qwen3Architecture.from_hf_config(QWEN3_4B)
    assert arch == Qwen3Architecture(
        num_layers=36,
        hidden_size=2560,
        ffn_hidden_size=9728,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=151936,
        max_position_embeddings=40960,
        rope_theta=1e6,
        rms_norm_eps=1e-6,
        tied_embeddings=True,
        initializer_range=0.02,
    )


@pytest.mark.parametrize(
    ("config", "layers", "ffn", "parameters"),
    [(QWEN3_30B_A3B, 48, 768, 30_532_122_624), (QWEN3_235B_A22B, 94, 1536, 235_093_634_560)],
)
def test_reads_published_mixtures_of_experts(config, layers, ffn, parameters):
    """The counts of parameters are those of the published files."""
    from math import prod

    from megatron_srpo.weights.table import hf_shapes

    arch = Qwen3Architecture.from_hf_config(config)
    assert arch.num_layers == layers and all(arch.has_experts(layer) for layer in range(layers))
    assert arch.experts == Experts(count=128, per_token=8, ffn_hidden_size=ffn, renormalize=True)
    assert not arch.has_dense_layers
    assert sum(prod(shape) for shape in hf_shapes(arch).values()) == parameters


def test_reads_mixtures_as_transformers_writes_them(tmp_path):
    from tests.model.tiny import EXPERTS, write_random_qwen3

    odd = {"num_hidden_layers": 5, "decoder_sparse_step": 2, "mlp_only_layers": [1]}
    arch = Qwen3Architecture.from_hf_folder(write_random_qwen3(tmp_path, **{**EXPERTS, **odd}))
    assert arch.experts == Experts(4, 2, 24, renormalize=True, dense_layers=(0, 1, 2, 4))
    assert [layer for layer in range(5) if arch.has_experts(layer)] == [3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts": 0}, "num_experts = 0"),
        ({"num_experts_per_tok": 129}, "num_experts_per_tok = 129 exceeds the 128 experts"),
        ({"num_experts_per_tok": 1}, "num_experts_per_tok = 1 with norm_topk_prob"),
        ({"norm_topk_prob": None}, "norm_topk_prob is missing"),
        ({"moe_intermediate_size": None}, "moe_intermediate_size is missing"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step = 0"),
        ({"mlp_only_layers": [48]}, r"mlp_only_layers = \[48\]"),
        ({"mlp_only_layers": list(range(48))}, "leave no layer with experts"),
        ({"shared_expert_intermediate_size": 512}, "shared_expert_intermediate_size = 512"),
        ({"n_group": 8}, "n_group = 8"),
        ({"scoring_func": "sigmoid"}, "scoring_func = 'sigmoid'"),
    ],
)
def test_refuses_what_a_mixture_of_qwen3_does_not_have(changes, message):
    with pytest.raises(ModelError, match=message):
        Qwen3Architecture.from_hf_config({**QWEN3_30B_A3B, **changes})


def test_reads_rope_parameters_of_transformers_5():
    config = {key: value for key, value in QWEN3_4B.items() if key not in ("rope_theta", "rope_scaling")}
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 5000.0}
    assert Qwen3Architecture.from_hf_config(config).rope_theta == 5000.0


def test_reads_what_transformers_writes(tmp_path):
    from transformers import Qwen3Config

    Qwen3Config(head_dim=64, num_key_value_heads=2, num_attention_heads=6, rms_norm_eps=1e-5).save_pretrained(
        tmp_path
    )
    arch = Qwen3Architecture.from_hf_folder(tmp_path)
    assert (arch.head_dim, arch.num_kv_heads, arch.num_heads, arch.rms_norm_eps) == (64, 2, 6, 1e-5)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "qwen3_next"),
        ("model_type", "llama"),
        ("hidden_act", "gelu"),
        ("attention_bias", True),
        ("attention_dropout", 0.1),
        ("use_sliding_window", True),
        ("layer_types", ["full_attention", "sliding_attention"]),
        ("quantization_config", {"quant_method": "fp8"}),
        ("num_hidden_layers", 0),
        ("hidden_size", "2560"),
        ("vocab_size", True),
        ("rms_norm_eps", -1.0),
        ("rope_theta", None),
        ("tie_word_embeddings", 1),
    ],
)
def test_refuses_what_a_dense_qwen3_does_not_have(key, value):
    with pytest.raises(ModelError, match=key):
        Qwen3Architecture.from_hf_config({**QWEN3_4B, key: value})


@pytest.mark.parametrize("section", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("name", ["rope_type", "type"])
def test_refuses_scaled_rope(section, name):
    with pytest.raises(ModelError, match=f"{section}.*yarn"):
        Qwen3Architecture.from_hf_config({**QWEN3_4B, section: {name: "yarn", "factor": 4.0}})


@pytest.mark.parametrize(
    "key",
    [
        "num_hidden_layers",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
        "max_position_embeddings",
        "rope_theta",
        "rms_norm_eps",
        "tie_word_embeddings",
    ],
)
def test_names_a_missing_key(key):
    config = {name: value for name, value in QWEN3_4B.items() if name != key}
    with pytest.raises(ModelError, match=f"{key} is missing"):
        Qwen3Architecture.from_hf_config(config)


def test_refuses_query_heads_that_do_not_share_key_heads_evenly():
    with pytest.raises(ModelError, match="num_attention_heads = 32 is not a multiple of"):
        Qwen3Architecture.from_hf_config({**QWEN3_4B, "num_key_value_heads": 5})


def test_unreadable_folders(tmp_path):
    with pytest.raises(ModelError, match="does not exist"):
        Qwen3Architecture.from_hf_folder(tmp_path / "absent")
    with pytest.raises(ModelError, match=r"config\.json does not exist"):
        Qwen3Architecture.from_hf_folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_4B)[:-20])
    with pytest.raises(ModelError, match="not valid JSON"):
        Qwen3Architecture.from_hf_folder(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ModelError, match="holds a list"):
        Qwen3Architecture.from_hf_folder(tmp_path)


@given(vocab=st.integers(1, 10**6), tp=st.integers(1, 16), multiple=st.integers(1, 512))
def test_padded_vocabulary_is_the_next_multiple(vocab, tp, multiple):
    padded = Qwen3Architecture.from_hf_config({**QWEN3_4B, "vocab_size": vocab}).padded_vocab_size(
        tp, multiple
    )
    assert padded % (tp * multiple) == 0
    assert 0 <= padded - vocab < tp * multiple


def test_layouts_that_fit():
    arch = Qwen3Architecture.from_hf_config(QWEN3_4B)
    for tp in (1, 2, 4, 8):
        for pp in (1, 2, 3, 4, 6, 9, 12, 18, 36):
            check_layout(arch, tp, PipelineStages(pp))


@pytest.mark.parametrize(
    ("overrides", "tp", "pp", "message"),
    [
        ({}, 16, 1, "16 does not divide the model's 8 key/value heads; possible sizes: 1, 2, 4, 8$"),
        ({}, 3, 1, "3 does not divide the model's 32 attention heads"),
        ({"intermediate_size": 999}, 2, 1, "999 feed-forward units; possible sizes: 1$"),
        ({}, 1, 5, "5 does not divide the model's 36 layers; possible sizes: 1, 2, 3, 4, 6, 9, 12, 18, 36;"),
    ],
)
def test_layouts_that_do_not_fit(overrides, tp, pp, message):
    with pytest.raises(ConfigError, match=message):
        check_layout(Qwen3Architecture.from_hf_config({**QWEN3_4B, **overrides}), tp, PipelineStages(pp))


def test_layouts_of_experts_that_fit():
    arch = Qwen3Architecture.from_hf_config(QWEN3_235B_A22B)
    for tp, pp, expert in [(1, 1, 1), (4, 2, 1), (4, 1, 2), (2, 47, 64), (1, 1, 128)]:
        check_layout(arch, tp, PipelineStages(pp), expert)
    # Feed-forward units are cut only in layers without experts.
    check_layout(
        Qwen3Architecture.from_hf_config({**QWEN3_30B_A3B, "intermediate_size": 999}), 2, PipelineStages()
    )


@pytest.mark.parametrize(
    ("config", "tp", "expert", "message"),
    [
        (QWEN3_4B, 1, 2, "expert parallel size 2, but the model has no experts; use 1"),
        (QWEN3_30B_A3B, 1, 3, "3 does not divide the model's 128 experts; possible sizes: 1, 2, 4, 8, 16"),
        ({**QWEN3_30B_A3B, "num_experts": 12}, 2, 3, "tensor parallel size 2 and expert parallel size 3"),
    ],
)
def test_layouts_of_experts_that_do_not_fit(config, tp, expert, message):
    with pytest.raises(ConfigError, match=message):
        check_layout(Qwen3Architecture.from_hf_config(config), tp, PipelineStages(), expert)


def test_architecture_and_table_do_not_import_megatron():
    code = (
        "import sys, megatron_srpo.model.architecture, megatron_srpo.weights.hf_files;"
        "sys.exit(any(name.startswith('megatron.') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
