"""The resharding plan: which slice of which Megatron shard becomes which slice of which engine tensor.

A plan is data. It is computed once per run from sizes alone, identically on every rank, and can be printed,
counted and tested without a model. ``weights/assemble.py`` carries it out.

A *lane* is a stream of buckets assembled by one trainer rank (tensors of one engine rank, or a share of the
Hugging Face tensors); a *round* holds at most one bucket of every lane.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from megatron_srpo.errors import ConfigError
from megatron_srpo.model.architecture import Qwen3Architecture
from megatron_srpo.model.stages import PipelineStages
from megatron_srpo.weights.engine_layout import EngineTensor, hf_layout, sglang_layout
from megatron_srpo.weights.table import Box, Piece, Place, owners_by_tensor, stage_size


@dataclass(frozen=True)
class Training:
    """The trainer's side of a plan: layout of one copy of the model, and its vocabulary padding.

    Attributes:
        vocab_rows: rows of the embedding shard of one rank, padding included.
    """

    tp_size: int
    stages: PipelineStages
    vocab_rows: int
    ep_size: int = 1

    @property
    def ranks(self) -> int:
        """Ranks that hold one copy."""
        return stage_size(self.tp_size, self.ep_size) * self.stages.size

    def rank(self, place: Place) -> int:
        """Return a place's rank among them: the ranks of a stage are neighbours."""
        return place.pp_rank * stage_size(self.tp_size, self.ep_size) + place.rank


@dataclass(frozen=True)
class Move:
    """``parameter[source]`` of the copy's rank ``rank`` becomes ``tensor[target]``; the boxes have one shape.

    A target is a box of the tensor's ``matrix_shape``.
    """

    rank: int
    parameter: str
    source: Box
    target: Box

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.source.size


@dataclass(frozen=True)
class PlannedTensor:
    """An engine tensor with all the moves that fill it."""

    tensor: EngineTensor
    moves: tuple[Move, ...]


@dataclass(frozen=True)
class Slot:
    """A tensor's place in its bucket: elements ``offset`` to ``offset + tensor.size``."""

    planned: PlannedTensor
    offset: int


@dataclass(frozen=True)
class Bucket:
    """Tensors that travel together, back to back, in one flat buffer.

    Attributes:
        lane: which lane it belongs to.
        assembler: rank of the copy on which the bucket is put together.
        number: its place in the lane.
    """

    lane: int
    assembler: int
    number: int
    slots: tuple[Slot, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        last = self.slots[-1]
        return last.offset + last.planned.tensor.size

    def moves_from(self, rank: int) -> list[tuple[Slot, Move]]:
        """Return the moves that rank ``rank`` contributes, in the order of its message."""
        return [(slot, move) for slot in self.slots for move in slot.planned.moves if move.rank == rank]

    def __str__(self) -> str:
        return f"bucket {self.number} of lane {self.lane} (assembled by rank {self.assembler})"


@dataclass(frozen=True)
class Plan:
    """All rounds, in order. ``lanes`` counts the streams; a round may lack lanes that are already done."""

    rounds: tuple[tuple[Bucket, ...], ...]
    lanes: int

    @property
    def buckets(self) -> Iterable[Bucket]:
        """Every bucket, round by round."""
        return (bucket for round_ in self.rounds for bucket in round_)


def plan_tensors(
    arch: Qwen3Architecture, training: Training, tensors: Iterable[EngineTensor]
) -> list[PlannedTensor]:
    """Find for every engine tensor the trainer's slices that fill it."""
    owners = owners_by_tensor(arch, training.tp_size, training.stages, training.vocab_rows, training.ep_size)
    planned = []
    for tensor in tensors:
        moves = []
        for wanted in tensor.pieces:
            for owned in owners[wanted.hf_name]:
                common = _intersection(wanted.source, owned.piece.source)
                if common is not None:
                    moves.append(
                        Move(
                            training.rank(owned.place),
                            owned.parameter,
                            _through(common, owned.piece),
                            _through(common, wanted),
                        )
                    )
        planned.append(PlannedTensor(tensor, tuple(moves)))
    return planned


def _intersection(a: Box, b: Box) -> Box | None:
    start = tuple(map(max, a.start, b.start))
    stop = tuple(map(min, a.stop, b.stop))
    return Box(start, stop) if all(low < high for low, high in zip(start, stop, strict=True)) else None


def _through(common: Box, piece: Piece) -> Box:
    """Carry a box of the Hugging Face tensor over to the other side of ``piece``."""
    shift = [t - s for t, s in zip(piece.target.start, piece.source.start, strict=True)]
    return Box(
        tuple(a + by for a, by in zip(common.start, shift, strict=True)),
        tuple(b + by for b, by in zip(common.stop, shift, strict=True)),
    )


def plan_shards(
    arch: Qwen3Architecture, training: Training, engine_tp: int, limit: int, engine_ep: int = 1
) -> Plan:
    """Plan one lane per engine rank, holding exactly the parameters of that rank.

    Engine rank ``e`` is assembled by rank ``e`` of the copy (modulo its size): on shared GPUs that is the
    trainer rank of the same device, and the work is spread.

    Args:
        limit: most elements of a bucket; a larger tensor gets a bucket of its own.
        engine_ep: expert parallel size of the server.

    Raises:
        ConfigError: SGLang cannot split this model ``engine_tp`` ways, or a limit below 1.
    """
    layouts = [sglang_layout(arch, rank, engine_tp, engine_ep) for rank in range(engine_tp)]
    lanes = [
        (rank % training.ranks, plan_tensors(arch, training, layout)) for rank, layout in enumerate(layouts)
    ]
    return _plan(lanes, limit)


def plan_whole(arch: Qwen3Architecture, training: Training, assemblers: Sequence[int], limit: int) -> Plan:
    """Plan whole Hugging Face tensors, dealt out to ``assemblers`` so that all get about as many bytes.

    Args:
        assemblers: ranks of the copy, one lane each.
        limit: as for :func:`plan_shards`.
    """
    shares: list[list[PlannedTensor]] = [[] for _ in assemblers]
    load = [0] * len(assemblers)
    for planned in plan_tensors(arch, training, hf_layout(arch)):
        lane = load.index(min(load))
        shares[lane].append(planned)
        load[lane] += planned.tensor.size
    return _plan(list(zip(assemblers, shares, strict=True)), limit)


def _plan(lanes: Sequence[tuple[int, list[PlannedTensor]]], limit: int) -> Plan:
    if limit < 1:
        raise ConfigError(f"a bucket of {limit} elements holds nothing; give at least 1")
    cut = [
        [Bucket(lane, assembler, number, slots) for number, slots in enumerate(_cut(tensors, limit))]
        for lane, (assembler, tensors) in enumerate(lanes)
    ]
    rounds = tuple(tuple(b for b in column if b is not None) for column in zip_longest(*cut))
    return Plan(rounds, len(lanes))


def _cut(tensors: Iterable[PlannedTensor], limit: int) -> list[tuple[Slot, ...]]:
    buckets: list[tuple[Slot, ...]] = []
    slots: list[Slot] = []
    offset = 0
    for planned in tensors:
        if slots and offset + planned.tensor.size > limit:
            buckets.append(tuple(slots))
            slots, offset = [], 0
        slots.append(Slot(planned, offset))
        offset += planned.tensor.size
    return [*buckets, tuple(slots)] if slots else buckets


@dataclass(frozen=True)
class PlanCounts:
    """What a plan moves, in elements (multiply by the engine's element size for bytes).

    Attributes:
        model: elements of the Hugging Face model.
        delivered: elements that the engine receives in all, vocabulary padding included.
        sent: by (from rank, to rank) of the copy, elements that travel between ranks.
        local: by rank, elements that a rank assembles from its own shard.
        largest_bucket: elements of the largest bucket: a rank holds two of them at most per lane.
    """

    model: int
    delivered: int
    sent: dict[tuple[int, int], int]
    local: dict[int, int]
    largest_bucket: int


def count(arch: Qwen3Architecture, plan: Plan) -> PlanCounts:
    """Count what a plan moves."""
    sent: Counter[tuple[int, int]] = Counter()
    local: Counter[int] = Counter()
    for bucket in plan.buckets:
        for slot in bucket.slots:
            for move in slot.planned.moves:
                if move.rank == bucket.assembler:
                    local[move.rank] += move.size
                else:
                    sent[move.rank, bucket.assembler] += move.size
    return PlanCounts(
        model=sum(tensor.size for tensor in hf_layout(arch)),
        delivered=sum(bucket.size for bucket in plan.buckets),
        sent=dict(sent),
        local=dict(local),
        largest_bucket=max(bucket.size for bucket in plan.buckets),
    )


def format_plan(plan: Plan) -> str:
    """Write a plan for a person to read: every bucket, its tensors and where their slices come from."""
    lines = []
    for bucket in plan.buckets:
        lines.append(f"{bucket}: {bucket.size:,} elements")
        for slot in bucket.slots:
            tensor = slot.planned.tensor
            lines.append(f"  {tensor.name} {list(tensor.shape)} at {slot.offset}")
            for move in slot.planned.moves:
                lines.append(f"    rank {move.rank} {move.parameter}{move.source} -> {move.target}")
    return "\n".join(lines)


def format_counts(counts: PlanCounts, element_size: int) -> str:
    """Write what a plan moves: bytes per link and per rank."""
    mib = element_size / 2**20
    lines = [
        f"model {counts.model * mib:.1f} MiB, delivered to each engine {counts.delivered * mib:.1f} MiB "
        f"({counts.delivered / counts.model:.3f} x), largest bucket {counts.largest_bucket * mib:.1f} MiB"
    ]
    lines += [f"rank {a} -> rank {b}: {n * mib:.1f} MiB" for (a, b), n in sorted(counts.sent.items())]
    lines += [f"rank {rank}, its own: {n * mib:.1f} MiB" for rank, n in sorted(counts.local.items())]
    return "\n".join(lines)
