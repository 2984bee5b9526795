"""How an engine lays out Qwen3: which box of which Hugging Face tensor is which box of an engine tensor.

Two layouts: whole tensors under their Hugging Face names, which every engine takes and cuts itself, and the
parameters that one tensor-parallel rank of an SGLang server holds, fused and cut as it does.

Source of the second: SGLang 0.5.23, ``models/qwen3.py``, ``models/qwen3_moe.py``,
``layers/{linear,vocab_parallel_embedding}.py`` and ``layers/moe/fused_moe_triton/layer.py``.
That it still holds is proved at the first synchronisation of a run, by checksums of what the server holds.
"""

from dataclasses import dataclass
from functools import lru_cache

from megatron_srpo.errors import ConfigError
from megatron_srpo.model.architecture import Qwen3Architecture
from megatron_srpo.weights.table import (
    HF_EMBEDDING,
    HF_FINAL_NORM,
    HF_HEAD,
    HF_ROUTER,
    Box,
    Piece,
    Shape,
    hf_shapes,
)

# SGLang pads the vocabulary to a multiple of this, or of this times its tensor-parallel size.
SGLANG_VOCAB_MULTIPLE = 64


@dataclass(frozen=True)
class EngineTensor:
    """One tensor that an engine rank holds. Rows that no piece covers (vocabulary padding) are 0.

    The pieces' targets are boxes of :attr:`matrix_shape`.
    """

    name: str
    shape: Shape
    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        """Number of elements, padding included."""
        return Box((0,) * len(self.shape), self.shape).size

    @property
    def matrix_shape(self) -> Shape:
        """The shape, with experts that lie one after another seen as one matrix of all their rows."""
        return self.shape if len(self.shape) < 3 else (self.shape[0] * self.shape[1], self.shape[2])


def _whole(name: str, hf_name: str, shape: Shape) -> EngineTensor:
    box = Box((0,) * len(shape), shape)
    return EngineTensor(name, shape, (Piece(hf_name, box, box),))


@lru_cache(maxsize=16)
def hf_layout(arch: Qwen3Architecture) -> tuple[EngineTensor, ...]:
    """Return every Hugging Face tensor, whole."""
    return tuple(_whole(name, name, shape) for name, shape in hf_shapes(arch).items())


def check_engine_layout(arch: Qwen3Architecture, tp_size: int, ep_size: int = 1) -> None:
    """Refuse an engine tensor-parallel size that SGLang cannot use with this model.

    Args:
        ep_size: expert parallel size of the engine; a part of its tensor-parallel ranks.

    Raises:
        ConfigError: names the size and what it does not divide.
    """
    split = {"attention heads": arch.num_heads}
    if arch.has_dense_layers:
        split["feed-forward units"] = arch.ffn_hidden_size
    for what, size in split.items():
        if size % tp_size:
            raise ConfigError(
                f"engine tensor parallel size {tp_size} does not divide the model's {size} {what}; "
                "choose another"
            )
    few, many = sorted((arch.num_kv_heads, tp_size))
    if many % few:
        raise ConfigError(
            f"engine tensor parallel size {tp_size} and the model's {arch.num_kv_heads} key/value heads: "
            "one must be a multiple of the other; choose another size"
        )
    _check_engine_experts(arch, tp_size, ep_size)


def _check_engine_experts(arch: Qwen3Architecture, tp_size: int, ep_size: int) -> None:
    count = arch.experts.count if arch.experts else 1
    if tp_size % ep_size or count % ep_size:
        raise ConfigError(
            f"engine expert parallel size {ep_size} does not divide its tensor parallel size {tp_size} and "
            f"the model's {count} experts; choose another"
        )
    units, ranks = (arch.experts.ffn_hidden_size if arch.experts else 0), tp_size // ep_size
    if units % ranks:
        raise ConfigError(
            f"engine tensor parallel size {tp_size} over expert parallel size {ep_size} is {ranks}, which "
            f"does not divide the {units} feed-forward units of an expert; choose another"
        )


@lru_cache(maxsize=64)
def sglang_layout(
    arch: Qwen3Architecture, tp_rank: int, tp_size: int, ep_size: int = 1
) -> tuple[EngineTensor, ...]:
    """Return every parameter of one tensor-parallel rank of an SGLang server, in the model's order.

    Raises:
        ConfigError: SGLang cannot split this model ``tp_size`` ways.
    """
    check_engine_layout(arch, tp_size, ep_size)
    tensors = [_vocab_shard(HF_EMBEDDING, arch, tp_rank, tp_size)]
    for index in range(arch.num_layers):
        prefix = f"model.layers.{index}."
        tensors.extend(_attention(prefix, arch, tp_rank, tp_size))
        if arch.has_experts(index):
            tensors.extend(_experts(prefix, arch, tp_rank, tp_size, ep_size))
        else:
            tensors.append(_gate_up(prefix, arch, tp_rank, tp_size))
            down = prefix + "mlp.down_proj.weight"
            tensors.append(_columns(down, arch.hidden_size, arch.ffn_hidden_size, tp_rank, tp_size))
    tensors.append(_whole(HF_FINAL_NORM, HF_FINAL_NORM, (arch.hidden_size,)))
    if not arch.tied_embeddings:
        tensors.append(_vocab_shard(HF_HEAD, arch, tp_rank, tp_size))
    return tuple(tensors)


def _vocab_shard(name: str, arch: Qwen3Architecture, tp_rank: int, tp_size: int) -> EngineTensor:
    """Cut the padded vocabulary into equal runs of rows; the padding lies at its end."""
    unit = SGLANG_VOCAB_MULTIPLE
    if _round_up(arch.vocab_size, unit) % tp_size:
        unit *= tp_size
    rows = _round_up(arch.vocab_size, unit) // tp_size
    start, stop = (min(edge * rows, arch.vocab_size) for edge in (tp_rank, tp_rank + 1))
    pieces: tuple[Piece, ...] = ()
    if stop > start:
        source = Box((start, 0), (stop, arch.hidden_size))
        pieces = (Piece(name, source, Box((0, 0), source.shape)),)
    return EngineTensor(name, (rows, arch.hidden_size), pieces)


def _round_up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def _attention(prefix: str, arch: Qwen3Architecture, tp_rank: int, tp_size: int) -> list[EngineTensor]:
    """List the attention of a layer, and its norms."""
    hidden, head = arch.hidden_size, arch.head_dim
    norms = {
        "input_layernorm.weight": hidden,
        "self_attn.q_norm.weight": head,
        "self_attn.k_norm.weight": head,
        "post_attention_layernorm.weight": hidden,
    }
    return [
        _qkv(prefix, arch, tp_rank, tp_size),
        _columns(prefix + "self_attn.o_proj.weight", hidden, arch.num_heads * head, tp_rank, tp_size),
        *(_whole(prefix + name, prefix + name, (size,)) for name, size in norms.items()),
    ]


def _stacked(width: int, runs: list[tuple[str, int, int]]) -> tuple[Piece, ...]:
    """Stack runs of rows, given as (Hugging Face name, first row, rows), one under another."""
    pieces, row = [], 0
    for hf_name, first, rows in runs:
        source = Box((first, 0), (first + rows, width))
        pieces.append(Piece(hf_name, source, Box((row, 0), (row + rows, width))))
        row += rows
    return tuple(pieces)


def _qkv(prefix: str, arch: Qwen3Architecture, tp_rank: int, tp_size: int) -> EngineTensor:
    """Stack this rank's query heads over its key heads over its value heads.

    With more ranks than key/value heads, runs of ranks hold copies of the same head.
    """
    queries = arch.num_heads // tp_size * arch.head_dim
    kv_heads = max(1, arch.num_kv_heads // tp_size)
    copies = max(1, tp_size // arch.num_kv_heads)
    keys = kv_heads * arch.head_dim
    attention = prefix + "self_attn."
    runs = [
        (attention + "q_proj.weight", tp_rank * queries, queries),
        (attention + "k_proj.weight", tp_rank // copies * keys, keys),
        (attention + "v_proj.weight", tp_rank // copies * keys, keys),
    ]
    rows = queries + 2 * keys
    return EngineTensor(
        attention + "qkv_proj.weight", (rows, arch.hidden_size), _stacked(arch.hidden_size, runs)
    )


def _gate_up(prefix: str, arch: Qwen3Architecture, tp_rank: int, tp_size: int) -> EngineTensor:
    rows = arch.ffn_hidden_size // tp_size
    runs = [(f"{prefix}mlp.{kind}_proj.weight", tp_rank * rows, rows) for kind in ("gate", "up")]
    name, shape = prefix + "mlp.gate_up_proj.weight", (2 * rows, arch.hidden_size)
    return EngineTensor(name, shape, _stacked(arch.hidden_size, runs))


def _experts(
    prefix: str, arch: Qwen3Architecture, tp_rank: int, tp_size: int, ep_size: int
) -> list[EngineTensor]:
    """Give a rank its run of experts, and of each its run of units; gate over up, one expert after another.

    Ranks that share their experts are neighbours. The router is whole on every rank.
    """
    assert arch.experts is not None
    hidden, cuts = arch.hidden_size, tp_size // ep_size
    held, units = arch.experts.count // ep_size, arch.experts.ffn_hidden_size // cuts
    first, start = tp_rank // cuts * held, tp_rank % cuts * units
    names = [f"{prefix}mlp.experts.{expert}." for expert in range(first, first + held)]
    runs = [(f"{name}{kind}_proj.weight", start, units) for name in names for kind in ("gate", "up")]
    columns = Box((0, start), (hidden, start + units))
    down = tuple(
        Piece(f"{name}down_proj.weight", columns, Box((place * hidden, 0), ((place + 1) * hidden, units)))
        for place, name in enumerate(names)
    )
    router = prefix + HF_ROUTER
    return [
        _whole(router, router, (arch.experts.count, hidden)),
        EngineTensor(f"{prefix}mlp.experts.w13_weight", (held, 2 * units, hidden), _stacked(hidden, runs)),
        EngineTensor(f"{prefix}mlp.experts.w2_weight", (held, hidden, units), down),
    ]


def _columns(name: str, outputs: int, inputs: int, tp_rank: int, tp_size: int) -> EngineTensor:
    """Give a rank its run of the input columns of a row-parallel matrix."""
    width = inputs // tp_size
    source = Box((0, tp_rank * width), (outputs, (tp_rank + 1) * width))
    return EngineTensor(name, source.shape, (Piece(name, source, Box((0, 0), source.shape)),))
