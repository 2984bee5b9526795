"""Prompt-response pairs packed into micro-batches, and values of their response tokens.

Shape suffixes: T packed tokens of a micro-batch, R response tokens of a micro-batch or of one sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_srpo import platform
from megatron_srpo.data.packing import pack
from megatron_srpo.model.packing import PackedTokens, pack_tokens
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
        lengths: response length of each member; their values stand one after the other in R.
    """

    members: tuple[int, ...]
    packed: PackedTokens
    predictor_R: Tensor
    target_R: Tensor
    lengths: tuple[int, ...]

    @property
    def idle(self) -> bool:
        """Whether it holds no sequence, and only keeps this rank in step with others."""
        return not self.members

    def gather(self, values: Sequence[Tensor]) -> Tensor:
        """Concatenate the members' entries of ``values`` (one tensor per packed sequence) on the device."""
        return torch.cat([values[member] for member in self.members]).to(platform.device())


def micro_batches(sequences: Sequence[TokenSequence], capacity: int) -> list[MicroBatch]:
    """Pack sequences into micro-batches of at most ``capacity`` input tokens.

    Raises:
        DataError: a sequence is longer than ``capacity``.
    """
    lengths = [len(sequence.inputs) for sequence in sequences]
    return [_micro_batch(sequences, members) for members in pack(lengths, capacity)]


def in_step(batches: list[MicroBatch], groups: ProcessGroups) -> list[MicroBatch]:
    """Add idle micro-batches where other replicas have more, and this one holds a part of their experts.

    Every replica of a copy of the model must come to a layer's experts equally often, or the others would
    wait for it there for ever. A collective over the copy where experts are spread over several replicas.
    """
    if groups.copy.size() == groups.replica.size():
        return batches
    count = torch.tensor(len(batches), device=platform.device())
    dist.all_reduce(count, op=dist.ReduceOp.MAX, group=groups.copy)
    return batches + [_idle_batch() for _ in range(int(count) - len(batches))]


def _idle_batch() -> MicroBatch:
    """Return a micro-batch of one token, which is the least that a model takes, and no response."""
    nothing = torch.empty(0, dtype=torch.long, device=platform.device())
    return MicroBatch((), pack_tokens([[0]]), nothing, nothing, ())


def _micro_batch(sequences: Sequence[TokenSequence], members: Sequence[int]) -> MicroBatch:
    rows, start = [], 0
    for member in members:
        sequence = sequences[member]
        first = start + len(sequence.prompt) - 1
        rows.append(torch.arange(first, first + len(sequence.response)))
        start += len(sequence.inputs)
    targets = [token for member in members for token in sequences[member].response]
    device = platform.device()
    return MicroBatch(
        members=tuple(members),
        packed=pack_tokens([sequences[member].inputs for member in members]),
        predictor_R=torch.cat(rows).to(device),
        target_R=torch.tensor(targets, device=device),
        lengths=tuple(len(sequences[member].response) for member in members),
    )


def scatter(batches: Sequence[MicroBatch], values: Sequence[Tensor], count: int) -> list[Tensor]:
    """Undo packing: ``values`` holds one tensor [R, ...] per micro-batch; return one per sequence."""
    result: list[Tensor | None] = [None] * count
    for batch, value in zip(batches, values, strict=True):
        for member, part in zip(batch.members, value.split(batch.lengths), strict=True):
            result[member] = part
    return [part for part in result if part is not None]
