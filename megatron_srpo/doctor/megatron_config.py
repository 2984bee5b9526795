"""Is what Megatron-Core would build the model that ``config.json`` describes?

The file is read here once more, key by key, and compared with the finished config: not through the
architecture from which that was made, so that a mistake on the way, or a version of Megatron-Core that fills
a field in otherwise, shows before any weight is loaded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_srpo.config.model import ModelConfig, ParallelConfig
from megatron_srpo.doctor.types import Check
from megatron_srpo.errors import ConfigError
from megatron_srpo.model.architecture import (
    Qwen3Architecture,
    check_expert_tokens,
    check_layout,
    read_hf_config,
)
from megatron_srpo.model.precision import LOCAL, Layers
from megatron_srpo.model.stages import PipelineStages

NAME = "Megatron config"
REMEDY = (
    "install the megatron-core that this package asks for; if it is, the model cannot be trained as it is: "
    "report it with this line"
)

# Key of config.json -> field of Megatron-Core's TransformerConfig, and argument of its GPTModel.
_CONFIG = {
    "num_hidden_layers": "num_layers",
    "hidden_size": "hidden_size",
    "intermediate_size": "ffn_hidden_size",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_query_groups",
    "head_dim": "kv_channels",
    "rms_norm_eps": "layernorm_epsilon",
}
_MODEL = {
    "max_position_embeddings": "max_sequence_length",
    "tie_word_embeddings": "share_embeddings_and_output_weights",
}
_EXPERTS = {"num_experts_per_tok": "moe_router_topk", "moe_intermediate_size": "moe_ffn_hidden_size"}
# What every Qwen3 is, and config.json need not say.
_ALWAYS = {
    "add_bias_linear": False,
    "gated_linear_unit": True,
    "qk_layernorm": True,
    "normalization": "RMSNorm",
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
}
_ALWAYS_EXPERTS = {
    "moe_shared_expert_intermediate_size": None,
    "moe_router_score_function": "softmax",
    "moe_router_num_groups": None,
    "moe_router_topk_scaling_factor": None,
    "moe_router_enable_expert_bias": False,
}


@dataclass(frozen=True)
class Pair:
    """One property of a model, in the file and in Megatron-Core; an empty ``key``: the file does not say."""

    key: str
    expected: Any
    field: str
    found: Any

    @property
    def same(self) -> bool:
        """Whether both say the same."""
        return bool(self.expected == self.found)

    def __str__(self) -> str:
        named = " -> ".join(dict.fromkeys(part for part in (self.key, self.field) if part))
        return f"{named} {self.found}" if self.same else f"{named}: {self.expected}, built {self.found}"


@dataclass(frozen=True)
class Sizes:
    """A layout of which no rank runs."""

    tp_size: int
    cp_size: int
    ep_size: int
    sequence: bool
    stages: PipelineStages


def check_layout_of_model(arch: Qwen3Architecture, layout: ParallelConfig) -> Check:
    """Can this layout split this model?"""
    stages = PipelineStages.of(layout)
    try:
        check_layout(arch, layout.tensor, stages, layout.expert)
        check_expert_tokens(arch, layout)
    except ConfigError as error:
        return Check("layout", "fail", str(error), "correct the config's section `parallel`")
    counts = set(stages.layer_counts(arch.num_layers))
    uneven = f" (stages of {' and '.join(map(str, sorted(counts)))} layers)" if len(counts) > 1 else ""
    chunks = f" in {stages.chunks} chunks" if stages.interleaved else ""
    pipeline = f"pipeline {layout.pipeline}{uneven}{chunks}"
    sizes = f"tensor {layout.tensor} x {pipeline} x context {layout.context}"
    experts = f", experts over {layout.expert}" if layout.expert > 1 else ""
    sequence = ", sequence parallel" if layout.sequence and layout.tensor > 1 else ""
    ranks = f"a multiple of {layout.fewest_ranks} ranks"
    return Check("layout", "ok", f"{sizes}{experts}{sequence}: {ranks}")


def check_megatron_config(
    folder: str | Path, model: ModelConfig, layout: ParallelConfig, recompute: str, layers: Layers = LOCAL
) -> Check:
    """Compare what would be built of a readable model, in a layout that splits it, with its ``config.json``.

    Args:
        recompute: ``training.recompute``.
        layers: what the layers would be made of.
    """
    try:
        import torch

        from megatron_srpo.model.build import model_arguments, transformer_config
    except ImportError as error:
        return Check(NAME, "fail", f"Megatron-Core cannot be imported: {error}", "see the packages above")
    arch = Qwen3Architecture.from_hf_folder(folder)
    sequence = layout.sequence and layout.tensor > 1
    stages = PipelineStages.of(layout)
    sizes = Sizes(layout.tensor, layout.context, layout.expert, sequence, stages)
    try:
        config = transformer_config(arch, sizes, getattr(torch, model.dtype), recompute, layers)
    except (ValueError, AssertionError) as error:
        return Check(NAME, "fail", f"Megatron-Core refuses it: {error}", "correct the section `parallel`")
    arguments = model_arguments(arch, layout.tensor, model.vocab_multiple)
    return judge(pairs(read_hf_config(folder), config, arguments, model.vocab_multiple * layout.tensor))


def judge(found: list[Pair]) -> Check:
    """List all pairs, or those that differ."""
    different = [pair for pair in found if not pair.same]
    if different:
        return Check(NAME, "fail", f"not what config.json says: {'; '.join(map(str, different))}", REMEDY)
    return Check(NAME, "ok", f"{len(found)} fields agree: {', '.join(map(str, found))}")


def pairs(file: Mapping[str, Any], config: Any, model: Mapping[str, Any], vocab_unit: int) -> list[Pair]:
    """Pair a model's ``config.json`` with Megatron-Core's config and the arguments of its model.

    Args:
        vocab_unit: the vocabulary is padded to a multiple of it.
    """
    rope = file.get("rope_parameters") or {}
    padded = -(-file["vocab_size"] // vocab_unit) * vocab_unit
    return [
        *(Pair(key, file[key], field, getattr(config, field)) for key, field in _CONFIG.items()),
        *(Pair(key, file[key], field, model[field]) for key, field in _MODEL.items()),
        Pair("vocab_size padded", padded, "vocab_size", model["vocab_size"]),
        Pair(
            "rope_theta", rope.get("rope_theta", file.get("rope_theta")), "rotary_base", model["rotary_base"]
        ),
        Pair("", "rope", "position_embedding_type", model["position_embedding_type"]),
        Pair(
            "hidden_act", file.get("hidden_act", "silu"), "activation_func", config.activation_func.__name__
        ),
        Pair("attention_bias", file.get("attention_bias", False), "add_qkv_bias", config.add_qkv_bias),
        *(Pair("", value, field, getattr(config, field)) for field, value in _ALWAYS.items()),
        *_expert_pairs(file, config),
    ]


def _expert_pairs(file: Mapping[str, Any], config: Any) -> list[Pair]:
    # transformers 5 writes the number of experts under another name than the published files have.
    key = "num_local_experts" if "num_local_experts" in file else "num_experts"
    if file["model_type"] != "qwen3_moe":
        return [Pair("", None, "num_moe_experts", config.num_moe_experts)]
    layers, step = range(file["num_hidden_layers"]), file.get("decoder_sparse_step", 1)
    dense = file.get("mlp_only_layers") or []
    sparse = [layer not in dense and (layer + 1) % step == 0 for layer in layers]
    frequency = config.moe_layer_freq
    built = frequency if isinstance(frequency, list) else [layer % frequency == 0 for layer in layers]
    # Megatron-Core takes the softmax of the chosen experts, or chooses after it and does not renormalise.
    renormalised = not config.moe_router_pre_softmax
    return [
        Pair(key, file[key], "num_moe_experts", config.num_moe_experts),
        *(Pair(key, file[key], field, getattr(config, field)) for key, field in _EXPERTS.items()),
        Pair("norm_topk_prob", file["norm_topk_prob"], "not moe_router_pre_softmax", renormalised),
        Pair("layers with experts", _numbers(sparse), "moe_layer_freq", _numbers(built)),
        *(Pair("", value, field, getattr(config, field)) for field, value in _ALWAYS_EXPERTS.items()),
    ]


def _numbers(chosen: Sequence[bool | int]) -> str:
    """List the layers that are chosen."""
    return (
        "all" if all(chosen) else ", ".join(str(layer) for layer, is_chosen in enumerate(chosen) if is_chosen)
    )
