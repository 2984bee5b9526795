"""Small random Qwen3 models in Hugging Face format, and their logits by transformers (the reference)."""

from pathlib import Path
from typing import Any

import torch

SMALL: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 96,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "initializer_range": 0.2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}


def random_qwen3(seed: int = 0, **overrides: Any) -> torch.nn.Module:
    """Build a random Qwen3ForCausalLM (fp32, evaluation mode); ``overrides`` are config keys."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(Qwen3Config(**{**SMALL, **overrides}))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name:  # all-ones norms would hide a forgotten or swapped norm
                    parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.float().eval()


def write_random_qwen3(folder: str | Path, max_shard_size: str = "5GB", **overrides: Any) -> Path:
    """Write such a model as a Hugging Face folder (config.json, safetensors); return the folder."""
    random_qwen3(**overrides).save_pretrained(folder, max_shard_size=max_shard_size)
    return Path(folder)


def load_reference(folder: str | Path) -> torch.nn.Module:
    """Load a folder with transformers, in fp32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def reference_logits(folder: str | Path, sequences: list[list[int]]) -> list[torch.Tensor]:
    """Return transformers' logits [length, vocabulary] of every sequence run alone."""
    model = load_reference(folder)
    return [model(torch.tensor([sequence])).logits[0] for sequence in sequences]
