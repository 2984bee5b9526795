"""What an SGLang rank holds, written a second time: whole tensors cut and joined instead of listed boxes."""

import torch

from megatron_srpo.model.architecture import Qwen3Architecture
from megatron_srpo.weights.plan import Training


def random_hf(arch: Qwen3Architecture, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return random tensors under their Hugging Face names. All elements differ, so a swap cannot hide."""
    from megatron_srpo.weights.table import hf_shapes

    shapes = hf_shapes(arch)
    total = sum(torch.Size(shape).numel() for shape in shapes.values())
    values = torch.randperm(total, generator=torch.Generator().manual_seed(seed)).float() + 1
    parts = values.split([torch.Size(shape).numel() for shape in shapes.values()])
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def megatron_parameters(
    arch: Qwen3Architecture, hf: dict[str, torch.Tensor], training: Training
) -> list[dict[str, torch.Tensor]]:
    """Return, by rank, the parameters of a whole copy (tests/weights/reference.py makes each)."""
    from megatron_srpo.weights.table import places, rank_table
    from tests.weights.reference import shard

    return [
        {
            entry.parameter: shard(arch, hf, entry.parameter, place, training.vocab_rows)
            for entry in rank_table(arch, place, training.vocab_rows)
        }
        for place in places(training.tp_size, training.stages, training.ep_size)
    ]


def sglang_parameters(
    arch: Qwen3Architecture, hf: dict[str, torch.Tensor], rank: int, tp: int, ep: int = 1
) -> dict[str, torch.Tensor]:
    """Return the parameters of one tensor-parallel rank of SGLang's Qwen3(Moe)ForCausalLM."""
    held = {"model.embed_tokens.weight": _vocab(hf["model.embed_tokens.weight"], rank, tp)}
    for index in range(arch.num_layers):
        prefix = f"model.layers.{index}."
        q, k, v, o = (hf[f"{prefix}self_attn.{kind}_proj.weight"] for kind in "qkvo")
        heads = [_kv_heads(x, arch, rank, tp) for x in (k, v)]
        held[f"{prefix}self_attn.qkv_proj.weight"] = torch.cat([q.chunk(tp)[rank], *heads])
        held[f"{prefix}self_attn.o_proj.weight"] = o.chunk(tp, dim=1)[rank]
        if arch.has_experts(index):
            held |= _experts(arch, hf, f"{prefix}mlp.", rank, tp, ep)
        else:
            gate, up, down = (hf[f"{prefix}mlp.{kind}_proj.weight"] for kind in ("gate", "up", "down"))
            held[f"{prefix}mlp.gate_up_proj.weight"] = torch.cat([gate.chunk(tp)[rank], up.chunk(tp)[rank]])
            held[f"{prefix}mlp.down_proj.weight"] = down.chunk(tp, dim=1)[rank]
        for norm in (
            "input_layernorm",
            "post_attention_layernorm",
            "self_attn.q_norm",
            "self_attn.k_norm",
        ):
            held[f"{prefix}{norm}.weight"] = hf[f"{prefix}{norm}.weight"]
    held["model.norm.weight"] = hf["model.norm.weight"]
    if not arch.tied_embeddings:
        held["lm_head.weight"] = _vocab(hf["lm_head.weight"], rank, tp)
    return held


def _experts(
    arch: Qwen3Architecture, hf: dict[str, torch.Tensor], prefix: str, rank: int, tp: int, ep: int
) -> dict[str, torch.Tensor]:
    """Stack all experts, deal them out to groups of ranks, and cut each over the ranks of its group."""
    assert arch.experts is not None
    gate, up, down = (
        torch.stack([hf[f"{prefix}experts.{e}.{kind}_proj.weight"] for e in range(arch.experts.count)])
        for kind in ("gate", "up", "down")
    )
    group, place = divmod(rank, tp // ep)
    cut = [half.chunk(ep)[group].chunk(tp // ep, dim=1)[place] for half in (gate, up)]
    return {
        f"{prefix}gate.weight": hf[f"{prefix}gate.weight"],
        f"{prefix}experts.w13_weight": torch.cat(cut, dim=1),
        f"{prefix}experts.w2_weight": down.chunk(ep)[group].chunk(tp // ep, dim=2)[place],
    }


def _kv_heads(matrix: torch.Tensor, arch: Qwen3Architecture, rank: int, tp: int) -> torch.Tensor:
    """With more ranks than heads, every head is repeated until there is one for each rank."""
    by_head = matrix.view(arch.num_kv_heads, arch.head_dim, -1)
    if tp > arch.num_kv_heads:
        by_head = by_head.repeat_interleave(tp // arch.num_kv_heads, dim=0)
    return by_head.chunk(tp)[rank].flatten(0, 1)


def _vocab(matrix: torch.Tensor, rank: int, tp: int) -> torch.Tensor:
    """Pad with zeros until 64 rows, or 64 per rank, divide the vocabulary, and cut."""
    unit = 64 if -(-len(matrix) // 64) * 64 % tp == 0 else 64 * tp
    padding = -len(matrix) % unit
    return torch.cat([matrix, matrix.new_zeros(padding, matrix.shape[1])]).chunk(tp)[rank]
