"""Prompt-response pairs packed into micro-batches, and values of their response tokens.

Shape suffixes: T packed tokens of a micro-batch on this rank; R response tokens of one sequence, or those of
a micro-batch whose predictors this rank holds (all of them without context parallelism); W all of those of a
micro-batch, on whatever rank.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_srpo import platform
from megatron_srpo.data.packing import pack_evenly
from megatron_srpo.model.packing import UNDIVIDED, PackedTokens, TokenSplit, pack_tokens
from megatron_srpo.model.parallel import ProcessGroups


@dataclass(frozen=True)
class TokenSequence:
    """Token ids of a prompt and of one response to it; both hold at least one token."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.prompt or not self.response:
            raise ValueError(
                f"a sequence needs prompt and response tokens; it has {len(self.prompt)} and "
                f"{len(self.response)}"
            )

    @property
    def inputs(self) -> list[int]:
        """What the model reads: all tokens but the last, which predicts nothing that is scored."""
        return [*self.prompt, *self.response[:-1]]


@dataclass(frozen=True)
class MicroBatch:
    """Several sequences in one packed row.

    Attributes:
        members: their indices in the list that was packed.
        packed: the model's input.
        predictor_R: rows of T whose hidden state predicts each response token.
        target_R: the response tokens.
        lengths: response length of each member; their values stand one after the other in W.
        place_R: where the response tokens of this rank stand in W; None where these are all.
    """

    members: tuple[int, ...]
    packed: PackedTokens
    predictor_R: Tensor
    target_R: Tensor
    lengths: tuple[int, ...]
    place_R: Tensor | None = None

    @property
    def idle(self) -> bool:
        """Whether it holds no sequence, and only keeps this rank in step with others."""
        return not self.members

    def gather(self, values: Sequence[Tensor]) -> Tensor:
        """Concatenate the members' entries of ``values`` (one tensor per packed sequence) on the device."""
        whole = torch.cat([values[member] for member in self.members]).to(platform.device())
        return whole if self.place_R is None else whole[self.place_R]

    def gather_some(self, values: Mapping[int, Tensor]) -> Tensor:
        """Concatenate the entries of those members that have one, in the order of the members.

        Args:
            values: by member, ascending; tensors on the device, one row per response token.
        """
        if self.place_R is None:
            return torch.cat(list(values.values()))
        lengths = zip(self.members, self.lengths, strict=True)
        present_W = torch.cat([torch.full((length,), member in values) for member, length in lengths])
        among_W = present_W.to(self.place_R.device).cumsum(0) - 1
        own_R = self.place_R[present_W.to(self.place_R.device)[self.place_R]]
        return torch.cat(list(values.values()))[among_W[own_R]]


def micro_batches(
    sequences: Sequence[TokenSequence], capacity: int, split: TokenSplit = UNDIVIDED
) -> list[MicroBatch]:
    """Pack sequences into micro-batches of at most ``capacity`` input tokens, and take this rank's part.

    The micro-batches are as few as first-fit packing needs, and nearly equal in cost.

    Raises:
        ConfigError: a sequence is longer than ``capacity``.
    """
    unit = split.sequence_multiple
    lengths = [-(-len(sequence.inputs) // unit) * unit for sequence in sequences]
    return [_micro_batch(sequences, members, split) for members in pack_evenly(lengths, capacity)]


def in_step(batches: list[MicroBatch], groups: ProcessGroups, least: int = 0) -> list[MicroBatch]:
    """Add idle micro-batches where other replicas have more, and this one holds a part of their experts.

    Every replica that shares experts must come to a layer's experts equally often, or the others would wait
    for it there for ever. And interleaved pipeline stages take micro-batches in turns of one per stage.
    A collective over these replicas.

    Args:
        least: micro-batches that every replica runs whatever the others do.
    """
    wanted = max(least, len(batches))
    if groups.replicas_share_experts:
        count = torch.tensor(wanted, device=platform.device())
        dist.all_reduce(count, op=dist.ReduceOp.MAX, group=groups.copy)
        wanted = int(count)
    if groups.stages.interleaved:
        wanted += -wanted % groups.pp_size
    return batches + [_idle_batch(groups.split) for _ in range(wanted - len(batches))]


def _idle_batch(split: TokenSplit) -> MicroBatch:
    """Return a micro-batch of one token, which is the least that a model takes, and no response."""
    nothing = torch.empty(0, dtype=torch.long, device=platform.device())
    return MicroBatch((), pack_tokens([[0]], split), nothing, nothing, ())


def _micro_batch(sequences: Sequence[TokenSequence], members: Sequence[int], split: TokenSplit) -> MicroBatch:
    packed, device = pack_tokens([sequences[member].inputs for member in members], split), platform.device()
    rows = []
    for start, member in zip(packed.starts, members, strict=True):
        first = start + len(sequences[member].prompt) - 1
        rows.append(torch.arange(first, first + len(sequences[member].response)))
    row_W, place_R = torch.cat(rows), None
    target_W = torch.tensor([token for member in members for token in sequences[member].response])
    if split.cp_size > 1:
        here = torch.full((packed.padded,), -1)
        here[packed.rows_T] = torch.arange(len(packed.rows_T))
        place_R = (here[row_W] >= 0).nonzero().flatten()
        row_W, target_W = here[row_W][place_R], target_W[place_R]
    return MicroBatch(
        members=tuple(members),
        packed=packed,
        predictor_R=row_W.to(device),
        target_R=target_W.to(device),
        lengths=tuple(len(sequences[member].response) for member in members),
        place_R=None if place_R is None else place_R.to(device),
    )


def scatter(batches: Sequence[MicroBatch], values: Sequence[Tensor], count: int) -> list[Tensor]:
    """Undo packing: ``values`` holds one tensor [W, ...] per micro-batch; return one per sequence."""
    result: list[Tensor | None] = [None] * count
    for batch, value in zip(batches, values, strict=True):
        for member, part in zip(batch.members, value.split(batch.lengths), strict=True):
            result[member] = part
    return [part for part in result if part is not None]
