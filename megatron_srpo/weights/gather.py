"""Full Hugging Face tensors out of Megatron shards, for the rollout engine and for export.

The ranks that hold one pipeline stage all-gather what they own, or the one that owns a thing alone broadcasts
it (an expert), and the stage broadcasts the result to the other stages. Small tensors travel together, large
ones in parts, so that neither the number of collectives nor the size of their buffers grows with the model.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest

import torch
import torch.distributed as dist

from megatron_srpo.model.architecture import Qwen3Architecture
from megatron_srpo.model.chunks import vocab_rows_of
from megatron_srpo.model.fp8 import plain
from megatron_srpo.model.parallel import ProcessGroups
from megatron_srpo.model.stages import PipelineStages
from megatron_srpo.weights.load import model_table, place_of
from megatron_srpo.weights.table import (
    Box,
    OwnedPiece,
    Piece,
    Shape,
    hf_shapes,
    owners_by_tensor,
    stage_size,
)

# Elements that one exchange carries at most, over all ranks of a stage (16 MiB in fp32). With the
# backend's own buffers an exchange needs about four times that, so this bounds the memory of export and sync.
EXCHANGE_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class Exchange:
    """One round of communication: what the ranks of one stage hand out.

    Attributes:
        pp_rank: the stage that sends.
        sent: by rank of the stage, the owned pieces in the order of its buffer.
        complete: tensors that are whole after this round, in order.
    """

    pp_rank: int
    sent: tuple[tuple[OwnedPiece, ...], ...]
    complete: tuple[str, ...]

    @property
    def length(self) -> int:
        """Elements of each rank's buffer; ranks that send less leave the rest unused."""
        return max(sum(owned.piece.source.size for owned in pieces) for pieces in self.sent)

    @property
    def senders(self) -> tuple[int, ...]:
        """The ranks of the stage whose buffers travel: the only one that has anything, or all."""
        filled = [rank for rank, pieces in enumerate(self.sent) if pieces]
        return tuple(filled) if len(filled) == 1 else tuple(range(len(self.sent)))


@torch.no_grad()
def hf_tensors(
    model: torch.nn.Module,
    arch: Qwen3Architecture,
    groups: ProcessGroups,
    dtype: torch.dtype | None = None,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every Hugging Face tensor, whole, in the order of ``hf_shapes``. A collective over the copy.

    Every rank of the copy must consume the iterator to its end; all get the same tensors. Beside the
    tensors of one exchange (at most one tensor larger than an exchange), nothing is kept.

    Args:
        dtype: of the yielded tensors; the model's own by default. Conversion happens before sending.
    """
    parameters = {entry.parameter: parameter for entry, parameter in model_table(model, arch, groups)}
    own_type = next(iter(parameters.values())).dtype
    place, shapes = place_of(groups), hf_shapes(arch)
    device = next(iter(parameters.values())).device
    vocab_rows = vocab_rows_of(model) // groups.tp_size
    whole: dict[str, torch.Tensor] = {}
    for exchange in plan_exchanges(arch, groups.tp_size, groups.stages, vocab_rows, ep_size=groups.ep_size):
        buffer = torch.empty(exchange.length, dtype=dtype or own_type, device=device)
        if exchange.pp_rank == place.pp_rank:
            _pack(buffer, exchange.sent[place.rank], parameters)
        received = _communicate(buffer, exchange, groups)
        for rank, content in zip(exchange.senders, received, strict=True):
            _unpack(content, exchange.sent[rank], whole, shapes)
        del buffer, received  # not alive beside the next exchange's
        for name in exchange.complete:
            yield name, whole.pop(name)


def _pack(
    buffer: torch.Tensor, pieces: Iterable[OwnedPiece], parameters: dict[str, torch.nn.Parameter]
) -> None:
    offset = 0
    for owned in pieces:
        target = owned.piece.target
        part = buffer[offset : offset + target.size].view(target.shape)
        part.copy_(plain(parameters[owned.parameter])[target.slices])
        offset += target.size


def _unpack(
    buffer: torch.Tensor,
    pieces: Iterable[OwnedPiece],
    whole: dict[str, torch.Tensor],
    shapes: dict[str, Shape],
) -> None:
    offset = 0
    for owned in pieces:
        name, source = owned.piece.hf_name, owned.piece.source
        if name not in whole:
            whole[name] = torch.empty(shapes[name], dtype=buffer.dtype, device=buffer.device)
        whole[name][source.slices].copy_(buffer[offset : offset + source.size].view(source.shape))
        offset += source.size


def _communicate(buffer: torch.Tensor, exchange: Exchange, groups: ProcessGroups) -> torch.Tensor:
    """Return [senders, length]: the buffers of the ranks that send, on all ranks."""
    received, senders = buffer, exchange.senders
    sending = groups.pp_rank == exchange.pp_rank
    if len(senders) == 1 < groups.stage.size() and sending:
        dist.broadcast(buffer, group_src=senders[0], group=groups.stage)
    elif len(senders) > 1:
        received = buffer.new_empty(len(senders) * buffer.numel())
        if sending:
            dist.all_gather(list(received.chunk(len(senders))), buffer, group=groups.stage)
    if groups.pp_size > 1:
        dist.broadcast(received, group_src=exchange.pp_rank, group=groups.pp)
    return received.view(len(senders), -1)


@lru_cache(maxsize=16)
def plan_exchanges(
    arch: Qwen3Architecture,
    tp_size: int,
    stages: PipelineStages,
    vocab_rows: int,
    limit: int = EXCHANGE_ELEMENTS,
    ep_size: int = 1,
) -> tuple[Exchange, ...]:
    """Cut all tensors into exchanges of at most ``limit`` elements, each from one stage."""
    exchanges: list[Exchange] = []
    ranks = stage_size(tp_size, ep_size)
    round_ = _Round(ranks)
    for name, owners in owners_by_tensor(arch, tp_size, stages, vocab_rows, ep_size).items():
        by_rank = [[o for o in owners if o.place.rank == rank] for rank in range(ranks)]
        share = limit // (1 if sum(map(bool, by_rank)) == 1 else ranks)
        parts = [[part for o in rank for part in _split(o, share)] for rank in by_rank]
        for slab in zip_longest(*parts):
            stage = owners[0].place.pp_rank
            if round_.pp_rank != stage or round_.size_with(slab) > limit:
                exchanges.extend(round_.finish())
                round_.pp_rank = stage
            round_.add(slab)
        round_.complete.append(name)
    exchanges.extend(round_.finish())
    return tuple(exchanges)


Slab = tuple[OwnedPiece | None, ...]


class _Round:
    """An exchange in the making."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self.pp_rank = 0
        self.clear()

    def clear(self) -> None:
        self.sent: list[list[OwnedPiece]] = [[] for _ in range(self.ranks)]
        self.complete: list[str] = []
        self.lengths = [0] * self.ranks

    def add(self, slab: Slab) -> None:
        for pieces, owned in zip(self.sent, slab, strict=True):
            if owned is not None:
                pieces.append(owned)
        self.lengths = self._lengths_with(slab)

    def size_with(self, slab: Slab) -> int:
        """Return the elements that travel when ``slab`` joins: as many from every rank, or from one only."""
        lengths = self._lengths_with(slab)
        return max(lengths) * (1 if sum(map(bool, lengths)) == 1 else self.ranks)

    def _lengths_with(self, slab: Slab) -> list[int]:
        return [
            length + (0 if owned is None else owned.piece.source.size)
            for length, owned in zip(self.lengths, slab, strict=True)
        ]

    def finish(self) -> list[Exchange]:
        """Return the exchange, when it carries anything, and start an empty one."""
        if not any(self.sent):
            return []
        exchange = Exchange(self.pp_rank, tuple(map(tuple, self.sent)), tuple(self.complete))
        self.clear()
        return [exchange]


def _split(owned: OwnedPiece, limit: int) -> Iterator[OwnedPiece]:
    """Cut a piece into runs of rows of at most ``limit`` elements (at least one row each)."""
    piece = owned.piece
    rows = piece.source.shape[0]
    step = max(1, limit // max(1, piece.source.size // rows))
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        part = Piece(piece.hf_name, _rows(piece.source, start, stop), _rows(piece.target, start, stop))
        yield OwnedPiece(owned.place, owned.parameter, part)


def _rows(box: Box, start: int, stop: int) -> Box:
    first = box.start[0]
    return Box((first + start, *box.start[1:]), (first + stop, *box.stop[1:]))
