"""Writes the model in the layout of the published Qwen3 folders."""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

_PUBLISHED_FIELDS = (
    "attention_bias",
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "pad_token_id",
    "rms_norm_eps",
    "tie_word_embeddings",
    "use_cache",
    "vocab_size",
)


def published_config(model: Any) -> dict[str, Any]:
    """config.json with the fields of the published Qwen3 models.

    `rope_theta` and `torch_dtype` stand at the top level: newer transformers releases write other names
    but read these, and older releases and inference engines read only these.
    """
    kept = {key: value for key, value in model.config.to_dict().items() if key in _PUBLISHED_FIELDS}
    kept["architectures"] = ["Qwen3ForCausalLM"]
    kept["model_type"] = "qwen3"
    kept["rope_theta"] = model.config.rope_parameters["rope_theta"]
    kept["torch_dtype"] = "float32"
    return dict(sorted(kept.items()))


def generation_config(model: Any) -> dict[str, Any]:
    """Sampling as in training: temperature 1, no truncation of the distribution."""
    stop, pad = model.config.eos_token_id, model.config.pad_token_id
    return {
        "do_sample": True,
        "eos_token_id": [stop, pad],
        "pad_token_id": pad,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
    }


def write_model(model: Any, folder: Path) -> None:
    """config.json, generation_config.json and model.safetensors (tied embedding stored once)."""
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    for name, content in (
        ("config.json", published_config(model)),
        ("generation_config.json", generation_config(model)),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def publish(folder: Path, destination: Path) -> None:
    """Put a finished folder in the place of an older one; readers never see a mixture."""
    old = destination.with_name(f".old-{destination.name}")
    if destination.exists():
        shutil.rmtree(old, ignore_errors=True)
        destination.rename(old)
    folder.rename(destination)
    shutil.rmtree(old, ignore_errors=True)
