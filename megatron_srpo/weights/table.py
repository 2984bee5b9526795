"""The one table of how each Hugging Face tensor of a Qwen3 lies in Megatron-Core shards.

The table is data: a :class:`Piece` says that one box of a Hugging Face tensor is one box of a rank's shard.
Import, export and engine sync only walk over pieces; none of them knows what a QKV matrix looks like.

The layout of Megatron-Core (``linear_qkv`` interleaves per key/value head; ``linear_fc1`` stacks gate over
up within each tensor-parallel rank; experts are dealt out whole) stands in :data:`_ATTENTION_TABLE`, the
tables after it and the functions that they name.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

from megatron_srpo.model.architecture import Qwen3Architecture
from megatron_srpo.model.stages import PipelineStages

HF_EMBEDDING = "model.embed_tokens.weight"
HF_FINAL_NORM = "model.norm.weight"
HF_HEAD = "lm_head.weight"
HF_ROUTER = "mlp.gate.weight"  # of a layer

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Box:
    """A half-open box of a tensor: ``start[d] <= index[d] < stop[d]`` in every dimension."""

    start: Shape
    stop: Shape

    @property
    def shape(self) -> Shape:
        return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))

    @property
    def slices(self) -> tuple[slice, ...]:
        """The box as an index of a tensor (or of a safetensors slice)."""
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))

    @property
    def size(self) -> int:
        """Number of elements."""
        total = 1
        for length in self.shape:
            total *= length
        return total

    def __str__(self) -> str:
        return "[" + ", ".join(f"{a}:{b}" for a, b in zip(self.start, self.stop, strict=True)) + "]"


@dataclass(frozen=True)
class Piece:
    """``hf_name[source]`` is ``parameter[target]``; the boxes have the same shape."""

    hf_name: str
    source: Box
    target: Box

    def __str__(self) -> str:
        return f"{self.hf_name}{self.source} -> {self.target}"


@dataclass(frozen=True)
class Entry:
    """One parameter of one rank.

    Attributes:
        parameter: its name in this rank's model of local layers (see ``model/chunks.py`` and
            :func:`other_names`): layers counted from 0 within the stage or, of an interleaved one, within its
            chunk, whose number comes first.
        shape: of the local shard, vocabulary padding included. What no piece covers is padding and stays 0.
        pieces: where its content comes from.
        owner: whether this rank is the one to hand the content out. What all ranks of a stage hold (norms,
            routers) is owned by the first; of what groups of them hold (tensor-parallel shards where experts
            are spread wider, and the other way round), the first group owns it; a tied head on the last
            stage is a copy of the embedding. So every Hugging Face element has exactly one owner.
    """

    parameter: str
    shape: Shape
    pieces: tuple[Piece, ...]
    owner: bool

    def __str__(self) -> str:
        mark = "" if self.owner else "  (copy)"
        lines = [f"{self.parameter} {list(self.shape)}{mark}", *(f"    {piece}" for piece in self.pieces)]
        return "\n".join(lines)


@dataclass(frozen=True)
class Place:
    """Position of one rank among those that together hold one copy of the model.

    Attributes:
        rank: its number among the ranks of its stage. Tensor-parallel ranks are neighbours, and so are
            expert-parallel ranks: of the two sizes, one is a multiple of the other.
        tp_size, ep_size: tensor and expert parallel sizes.
        pp_rank: its pipeline stage.
        stages: how layers are dealt to them.
    """

    rank: int
    tp_size: int
    pp_rank: int
    stages: PipelineStages = PipelineStages()
    ep_size: int = 1

    @property
    def tp_rank(self) -> int:
        return self.rank % self.tp_size

    @property
    def ep_rank(self) -> int:
        return self.rank % self.ep_size

    def owns(self, holders: int) -> bool:
        """Say whether this rank is of the first run of ``holders`` ranks that together hold a thing."""
        return self.rank < holders


def stage_size(tp_size: int, ep_size: int) -> int:
    """Return how many ranks of a stage hold one copy of it."""
    return max(tp_size, ep_size)


def places(tp_size: int, stages: PipelineStages, ep_size: int = 1) -> list[Place]:
    """Return every place of one copy of the model, in the order of its ranks."""
    return [
        Place(rank, tp_size, pp_rank, stages, ep_size)
        for pp_rank in range(stages.size)
        for rank in range(stage_size(tp_size, ep_size))
    ]


def hf_shapes(arch: Qwen3Architecture) -> dict[str, Shape]:
    """Return name and shape of every tensor of the Hugging Face model, in its usual order."""
    hidden = arch.hidden_size
    shapes: dict[str, Shape] = {HF_EMBEDDING: (arch.vocab_size, hidden)}
    for index in range(arch.num_layers):
        dense = _ffn_shapes(arch.ffn_hidden_size, hidden)
        layer = {
            **_attention_shapes(arch),
            **(_expert_shapes(arch) if arch.has_experts(index) else dense),
            "input_layernorm.weight": (hidden,),
            "post_attention_layernorm.weight": (hidden,),
        }
        shapes.update({f"model.layers.{index}.{name}": shape for name, shape in layer.items()})
    shapes[HF_FINAL_NORM] = (hidden,)
    if not arch.tied_embeddings:
        shapes[HF_HEAD] = (arch.vocab_size, hidden)
    return shapes


def _attention_shapes(arch: Qwen3Architecture) -> dict[str, Shape]:
    hidden, head = arch.hidden_size, arch.head_dim
    return {
        "self_attn.q_proj.weight": (arch.num_heads * head, hidden),
        "self_attn.k_proj.weight": (arch.num_kv_heads * head, hidden),
        "self_attn.v_proj.weight": (arch.num_kv_heads * head, hidden),
        "self_attn.o_proj.weight": (hidden, arch.num_heads * head),
        "self_attn.q_norm.weight": (head,),
        "self_attn.k_norm.weight": (head,),
    }


def _ffn_shapes(units: int, hidden: int, prefix: str = "mlp.") -> dict[str, Shape]:
    return {
        f"{prefix}gate_proj.weight": (units, hidden),
        f"{prefix}up_proj.weight": (units, hidden),
        f"{prefix}down_proj.weight": (hidden, units),
    }


def _expert_shapes(arch: Qwen3Architecture) -> dict[str, Shape]:
    assert arch.experts is not None
    shapes: dict[str, Shape] = {HF_ROUTER: (arch.experts.count, arch.hidden_size)}
    for expert in range(arch.experts.count):
        units = arch.experts.ffn_hidden_size
        shapes |= _ffn_shapes(units, arch.hidden_size, f"mlp.experts.{expert}.")
    return shapes


@lru_cache(maxsize=64)
def rank_table(arch: Qwen3Architecture, place: Place, vocab_rows: int) -> tuple[Entry, ...]:
    """Return every parameter of the rank at ``place``, in the order of the model.

    Args:
        vocab_rows: rows of the embedding shard, with vocabulary padding (``padded_vocab_size / tp_size``).
    """
    stages = place.stages
    entries: list[Entry] = []
    if place.pp_rank == 0:
        pieces = _vocab_rows(arch, place, HF_EMBEDDING, vocab_rows)
        shape = (vocab_rows, arch.hidden_size)
        owner = place.owns(place.tp_size)
        entries.append(Entry(stages.prefix(0) + "embedding.word_embeddings.weight", shape, pieces, owner))
    for chunk in range(stages.chunks):
        for local, index in enumerate(stages.layers(arch.num_layers, place.pp_rank, chunk)):
            entries.extend(
                _layer_entries(arch, place, f"{stages.prefix(chunk)}decoder.layers.{local}.", index)
            )
    if place.pp_rank == stages.size - 1:
        entries.extend(_end_entries(arch, place, vocab_rows, stages.prefix(stages.chunks - 1)))
    return tuple(entries)


def _end_entries(arch: Qwen3Architecture, place: Place, vocab_rows: int, chunk: str) -> Iterable[Entry]:
    """List what follows the last layer: the final norm and the head."""
    norm = _whole(HF_FINAL_NORM, (arch.hidden_size,))
    yield Entry(chunk + "decoder.final_layernorm.weight", (arch.hidden_size,), norm, place.owns(1))
    tied = arch.tied_embeddings
    if tied and place.stages.size == 1:
        return  # the embedding itself is the head
    pieces = _vocab_rows(arch, place, HF_EMBEDDING if tied else HF_HEAD, vocab_rows)
    owner = not tied and place.owns(place.tp_size)
    yield Entry(chunk + "output_layer.weight", (vocab_rows, arch.hidden_size), pieces, owner)


def _layer_entries(arch: Qwen3Architecture, place: Place, layer: str, index: int) -> Iterable[Entry]:
    prefix = f"model.layers.{index}."
    dense = {**_ATTENTION_TABLE, **({} if arch.has_experts(index) else _FFN_TABLE)}
    for name, pieces_of in dense.items():
        pieces = pieces_of(arch, place, prefix)
        holders = 1 if len(pieces[0].target.shape) == 1 else place.tp_size
        yield _entry(layer + name, pieces, place.owns(holders))
    if arch.has_experts(index):
        yield from _expert_entries(arch, place, f"{layer}mlp.", prefix)


def _expert_entries(arch: Qwen3Architecture, place: Place, layer: str, prefix: str) -> Iterable[Entry]:
    """List the router, which all ranks hold, and this rank's run of experts, each of them whole."""
    assert arch.experts is not None
    router = _whole(prefix + HF_ROUTER, (arch.experts.count, arch.hidden_size))
    yield _entry(f"{layer}router.weight", router, place.owns(1))
    units, local_experts = arch.experts.ffn_hidden_size, arch.experts.count // place.ep_size
    for local in range(local_experts):
        expert = f"{prefix}mlp.experts.{place.ep_rank * local_experts + local}."
        down = _whole(f"{expert}down_proj.weight", (arch.hidden_size, units))
        both = _stacked_halves(expert, 0, units, arch.hidden_size)
        name = f"{layer}experts.local_experts.{local}."
        yield _entry(f"{name}linear_fc1.weight", both, place.owns(place.ep_size))
        yield _entry(f"{name}linear_fc2.weight", down, place.owns(place.ep_size))


def _entry(parameter: str, pieces: tuple[Piece, ...], owner: bool) -> Entry:
    """Make an entry of the shape that its pieces fill."""
    shape = tuple(max(stops) for stops in zip(*(piece.target.stop for piece in pieces), strict=True))
    return Entry(parameter, shape, pieces, owner)


def _whole(hf_name: str, shape: Shape) -> tuple[Piece, ...]:
    box = Box((0,) * len(shape), shape)
    return (Piece(hf_name, box, box),)


def _vocab_rows(arch: Qwen3Architecture, place: Place, hf_name: str, rows: int) -> tuple[Piece, ...]:
    """Give a rank its run of vocabulary rows; rows past the vocabulary are padding."""
    start = min(place.tp_rank * rows, arch.vocab_size)
    stop = min(start + rows, arch.vocab_size)
    if start == stop:
        return ()
    source = Box((start, 0), (stop, arch.hidden_size))
    return (Piece(hf_name, source, Box((0, 0), source.shape)),)


PieceBuilder = Callable[[Qwen3Architecture, Place, str], tuple[Piece, ...]]


def _norm(name: str, size: Callable[[Qwen3Architecture], int]) -> PieceBuilder:
    def build(arch: Qwen3Architecture, place: Place, prefix: str) -> tuple[Piece, ...]:
        return _whole(prefix + name, (size(arch),))

    return build


def _columns(name: str, inputs: Callable[[Qwen3Architecture], int]) -> PieceBuilder:
    """Build the pieces of a row-parallel matrix: each rank has a run of the input columns."""

    def build(arch: Qwen3Architecture, place: Place, prefix: str) -> tuple[Piece, ...]:
        width = inputs(arch) // place.tp_size
        source = Box((0, place.tp_rank * width), (arch.hidden_size, (place.tp_rank + 1) * width))
        return (Piece(prefix + name, source, Box((0, 0), source.shape)),)

    return build


def _gate_over_up(arch: Qwen3Architecture, place: Place, prefix: str) -> tuple[Piece, ...]:
    rows = arch.ffn_hidden_size // place.tp_size
    return _stacked_halves(prefix + "mlp.", place.tp_rank * rows, rows, arch.hidden_size)


def _stacked_halves(prefix: str, first: int, rows: int, hidden: int) -> tuple[Piece, ...]:
    """Stack a run of the gate's rows over the same run of the up matrix."""
    source = Box((first, 0), (first + rows, hidden))
    return (
        Piece(prefix + "gate_proj.weight", source, Box((0, 0), (rows, hidden))),
        Piece(prefix + "up_proj.weight", source, Box((rows, 0), (2 * rows, hidden))),
    )


def _qkv_by_group(arch: Qwen3Architecture, place: Place, prefix: str) -> tuple[Piece, ...]:
    """Interleave per key/value head: its query heads, then its key head, then its value head."""
    groups = arch.num_kv_heads // place.tp_size
    head_rows = {
        "q": arch.num_heads // arch.num_kv_heads * arch.head_dim,
        "k": arch.head_dim,
        "v": arch.head_dim,
    }
    pieces, row = [], 0
    for group in range(place.tp_rank * groups, (place.tp_rank + 1) * groups):
        for kind, rows in head_rows.items():
            source = Box((group * rows, 0), ((group + 1) * rows, arch.hidden_size))
            target = Box((row, 0), (row + rows, arch.hidden_size))
            pieces.append(Piece(f"{prefix}self_attn.{kind}_proj.weight", source, target))
            row += rows
    return tuple(pieces)


# Parameter of a Megatron-Core layer -> the function that lists its pieces.
_ATTENTION_TABLE: dict[str, PieceBuilder] = {
    "input_layernorm.weight": _norm("input_layernorm.weight", lambda arch: arch.hidden_size),
    "self_attention.linear_proj.weight": _columns(
        "self_attn.o_proj.weight", lambda arch: arch.num_heads * arch.head_dim
    ),
    "self_attention.linear_qkv.weight": _qkv_by_group,
    "self_attention.q_layernorm.weight": _norm("self_attn.q_norm.weight", lambda arch: arch.head_dim),
    "self_attention.k_layernorm.weight": _norm("self_attn.k_norm.weight", lambda arch: arch.head_dim),
    "pre_mlp_layernorm.weight": _norm("post_attention_layernorm.weight", lambda arch: arch.hidden_size),
}

# The same for the feed-forward part of a layer without experts.
_FFN_TABLE: dict[str, PieceBuilder] = {
    "mlp.linear_fc1.weight": _gate_over_up,
    "mlp.linear_fc2.weight": _columns("mlp.down_proj.weight", lambda arch: arch.ffn_hidden_size),
}


# The same norms where Transformer Engine computes them inside the matrix product after them.
_INSIDE_A_PRODUCT = {
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
}


def other_names(parameter: str) -> Iterable[str]:
    """Yield what Megatron-Core's layers of Transformer Engine call a parameter of the local layers.

    The shapes are the same. Experts that are computed in one grouped product are numbered behind the name.
    """
    for local, inside in _INSIDE_A_PRODUCT.items():
        if parameter.endswith(f".{local}"):
            yield parameter.removesuffix(local) + inside
    layer, one_of_many, rest = parameter.partition("experts.local_experts.")
    if one_of_many:
        number, matrix, _ = rest.split(".")
        yield f"{layer}experts.{matrix}.weight{number}"


@dataclass(frozen=True)
class OwnedPiece:
    """A piece together with the rank and parameter that own it."""

    place: Place
    parameter: str
    piece: Piece


@lru_cache(maxsize=16)
def owners_by_tensor(
    arch: Qwen3Architecture, tp_size: int, stages: PipelineStages, vocab_rows: int, ep_size: int = 1
) -> dict[str, tuple[OwnedPiece, ...]]:
    """Return the inverse table: for each Hugging Face tensor, in order, who owns which of its boxes."""
    owners: dict[str, list[OwnedPiece]] = {name: [] for name in hf_shapes(arch)}
    for place in places(tp_size, stages, ep_size):
        for entry in rank_table(arch, place, vocab_rows):
            if entry.owner:
                for piece in entry.pieces:
                    owners[piece.hf_name].append(OwnedPiece(place, entry.parameter, piece))
    return {name: tuple(pieces) for name, pieces in owners.items()}


def format_table(entries: Iterable[Entry]) -> str:
    """Write entries for a person to read, one parameter with its pieces after another."""
    return "\n".join(str(entry) for entry in entries)
