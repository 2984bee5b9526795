"""Reading config.json, refusing other models, and the arithmetic of layouts."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_srpo.errors import ConfigError, ModelError
from megatron_srpo.model.architecture import Qwen3Architecture, check_layout

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
        ("model_type", "qwen3_moe"),
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
            check_layout(arch, tp, pp)


@pytest.mark.parametrize(
    ("overrides", "tp", "pp", "message"),
    [
        ({}, 16, 1, "16 does not divide the model's 8 key/value heads; possible sizes: 1, 2, 4, 8$"),
        ({}, 3, 1, "3 does not divide the model's 32 attention heads"),
        ({"intermediate_size": 999}, 2, 1, "999 feed-forward units; possible sizes: 1$"),
        ({}, 1, 5, "5 does not divide the model's 36 layers; possible sizes: 1, 2, 3, 4, 6, 9, 12, 18, 36$"),
    ],
)
def test_layouts_that_do_not_fit(overrides, tp, pp, message):
    with pytest.raises(ConfigError, match=message):
        check_layout(Qwen3Architecture.from_hf_config({**QWEN3_4B, **overrides}), tp, pp)


def test_architecture_and_table_do_not_import_megatron():
    code = (
        "import sys, megatron_srpo.model.architecture, megatron_srpo.weights.hf_files;"
        "sys.exit(any(name.startswith('megatron.') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
