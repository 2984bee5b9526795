"""Megatron-Core's layout written a second time, by reshaping whole tensors instead of listing boxes."""

import torch

from megatron_srpo.model.architecture import Experts, Qwen3Architecture
from megatron_srpo.model.stages import PipelineStages
from megatron_srpo.weights.table import Place

EXPERTS = Experts(count=4, per_token=2, ffn_hidden_size=4, renormalize=True)


def make_arch(**overrides: object) -> Qwen3Architecture:
    """Return a small architecture."""
    sizes: dict = {
        "num_layers": 2,
        "hidden_size": 12,
        "ffn_hidden_size": 8,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 3,
        "vocab_size": 10,
        "max_position_embeddings": 32,
        "rope_theta": 1e4,
        "rms_norm_eps": 1e-6,
        "tied_embeddings": False,
        "initializer_range": 0.02,
    }
    return Qwen3Architecture(**{**sizes, **overrides})


def shard(
    arch: Qwen3Architecture,
    hf: dict[str, torch.Tensor],
    parameter: str,
    place: Place,
    rows: int,
) -> torch.Tensor:
    """Return one rank's shard of ``parameter``, named as in its stage."""
    prefix = f"model.layers.{layer_of(arch, parameter, place)}."
    tp_rank, tp_size = place.rank % place.tp_size, place.tp_size
    if ".experts." in parameter:
        return _expert(arch, hf, parameter, prefix, place)
    if parameter.endswith("router.weight"):
        return hf[f"{prefix}mlp.gate.weight"]
    if parameter.endswith("linear_qkv.weight"):
        kv_heads = arch.num_kv_heads
        q, k, v = (hf[f"{prefix}self_attn.{kind}_proj.weight"] for kind in "qkv")
        grouped = torch.cat([x.reshape(kv_heads, -1, arch.hidden_size) for x in (q, k, v)], dim=1)
        return grouped.chunk(tp_size)[tp_rank].flatten(0, 1)
    if parameter.endswith("linear_fc1.weight"):
        both = torch.stack([hf[f"{prefix}mlp.{kind}_proj.weight"] for kind in ("gate", "up")])
        return both.chunk(tp_size, dim=1)[tp_rank].flatten(0, 1)
    if parameter.endswith("linear_proj.weight"):
        return hf[f"{prefix}self_attn.o_proj.weight"].chunk(tp_size, dim=1)[tp_rank]
    if parameter.endswith("linear_fc2.weight"):
        return hf[f"{prefix}mlp.down_proj.weight"].chunk(tp_size, dim=1)[tp_rank]
    names = {
        ".input_layernorm.weight": f"{prefix}input_layernorm.weight",
        ".pre_mlp_layernorm.weight": f"{prefix}post_attention_layernorm.weight",
        ".q_layernorm.weight": f"{prefix}self_attn.q_norm.weight",
        ".k_layernorm.weight": f"{prefix}self_attn.k_norm.weight",
        ".final_layernorm.weight": "model.norm.weight",
    }
    for suffix, name in names.items():
        if parameter.endswith(suffix):
            return hf[name]
    head = "model.embed_tokens.weight" if arch.tied_embeddings else "lm_head.weight"
    full = hf["model.embed_tokens.weight" if "embedding." in parameter else head]
    padded = torch.zeros(tp_size * rows, arch.hidden_size)
    padded[: arch.vocab_size] = full
    return padded.chunk(tp_size)[tp_rank]


def layer_of(arch: Qwen3Architecture, parameter: str, place: Place) -> int:
    """Return the number in the whole model of a parameter's layer, or -1."""
    chunk, parts = 0, parameter.split(".")
    if place.stages.chunks > 1:
        chunk, parts = int(parts[0]), parts[1:]
    if parts[1] != "layers":
        return -1
    return dealt(arch.num_layers, place.stages)[chunk, place.pp_rank][int(parts[2])]


def dealt(num_layers: int, stages: PipelineStages) -> dict[tuple[int, int], list[int]]:
    """Deal layers out to chunks of stages, one after the other: all stages' first chunks, then the second."""
    ends = {stage: count for stage, count in ((0, stages.first), (stages.size - 1, stages.last)) if count}
    middle = [stage for stage in range(stages.size) if stage not in ends]
    sizes = {stage: (num_layers - sum(ends.values())) // len(middle) for stage in middle} | ends
    rest = iter(range(num_layers))
    return {
        (chunk, stage): [next(rest) for _ in range(sizes[stage] // stages.chunks)]
        for chunk in range(stages.chunks)
        for stage in range(stages.size)
    }


def _expert(
    arch: Qwen3Architecture, hf: dict[str, torch.Tensor], parameter: str, prefix: str, place: Place
) -> torch.Tensor:
    """Deal all experts out in runs, and take the one that the parameter names."""
    assert arch.experts is not None
    run = torch.arange(arch.experts.count).chunk(place.ep_size)[place.rank % place.ep_size]
    *_, local, matrix, _ = parameter.split(".")
    expert = f"{prefix}mlp.experts.{run[int(local)]}."
    if matrix == "linear_fc2":
        return hf[f"{expert}down_proj.weight"]
    return torch.cat([hf[f"{expert}gate_proj.weight"], hf[f"{expert}up_proj.weight"]])
