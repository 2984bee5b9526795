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

# Added to it: a mixture of experts.
EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "norm_topk_prob": True,
}


def random_qwen3(seed: int = 0, **overrides: Any) -> torch.nn.Module:
    """Build a random Qwen3 (fp32, evaluation mode); ``overrides`` are config keys.

    It is a mixture of experts when they name a number of experts.
    """
    import transformers

    kind = "Qwen3Moe" if "num_experts" in overrides else "Qwen3"
    config = getattr(transformers, f"{kind}Config")(**{**SMALL, **overrides})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, f"{kind}ForCausalLM")(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name:  # all-ones norms would hide a forgotten or swapped norm
                    parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.float().eval()


def write_random_qwen3(folder: str | Path, max_shard_size: str = "5GB", **overrides: Any) -> Path:
    """Write such a model as a Hugging Face folder (config.json, safetensors); return the folder."""
    random_qwen3(**overrides).save_pretrained(folder, max_shard_size=max_shard_size)
    return Path(folder)


def stored_tensors(folder: str | Path) -> dict[str, torch.Tensor]:
    """Return the tensors in a folder's files. (transformers renames experts when it loads them.)"""
    from safetensors.torch import load_file

    files = sorted(Path(folder).glob("*.safetensors"))
    return {name: value for file in files for name, value in load_file(file).items()}


def load_reference(folder: str | Path) -> torch.nn.Module:
    """Load a folder with transformers, in fp32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def reference_logits(folder: str | Path, sequences: list[list[int]]) -> list[torch.Tensor]:
    """Return transformers' logits [length, vocabulary] of every sequence run alone."""
    model = load_reference(folder)
    return [model(torch.tensor([sequence])).logits[0] for sequence in sequences]
