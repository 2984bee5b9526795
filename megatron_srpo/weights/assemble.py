"""Carries out a resharding plan: buckets put together on their assemblers, one round ahead of their use.

While a caller sends the buckets of one round, the slices of the next are already travelling between the ranks
of one copy of the model, converted to the engine's type where they lie. A rank holds two buckets per lane
that it assembles, and what it exchanges in one round; never the model.
"""

import datetime
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist

from megatron_srpo.errors import WeightError
from megatron_srpo.model.fp8 import plain
from megatron_srpo.weights.plan import Bucket, Plan, Slot


@dataclass(frozen=True)
class FilledBucket:
    """A bucket with its content: a flat tensor of the engine's type on the assembler's device."""

    bucket: Bucket
    flat: torch.Tensor

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield name and view of every tensor."""
        for slot in self.bucket.slots:
            tensor = slot.planned.tensor
            yield tensor.name, _view(self.flat, slot).view(tensor.shape)


def _view(flat: torch.Tensor, slot: Slot) -> torch.Tensor:
    """Return a tensor's place in the bucket, in the shape of which the plan's targets are boxes."""
    tensor = slot.planned.tensor
    return flat[slot.offset : slot.offset + tensor.size].view(tensor.matrix_shape)


@dataclass(frozen=True)
class _Message:
    """Slices of one bucket from one rank, back to back, as they travel."""

    bucket: Bucket
    rank: int
    flat: torch.Tensor


class BucketMemory:
    """Flat buffers that are used again, two for every lane of this rank. Subclasses choose where they lie."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self._buffers: dict[tuple[int, int], torch.Tensor] = {}

    def take(self, bucket: Bucket, largest: int) -> torch.Tensor:
        """Return a buffer for ``bucket``; the one before the last bucket of its lane is used again.

        Args:
            largest: elements of the lane's largest bucket.
        """
        key = (bucket.lane, bucket.number % 2)
        if key not in self._buffers or self._buffers[key].numel() < largest:
            self._buffers[key] = self.allocate(largest)
        return self._buffers[key][: bucket.size]

    def allocate(self, elements: int) -> torch.Tensor:
        """Return a new flat buffer."""
        return torch.empty(elements, dtype=self.dtype, device=self.device)

    def free(self) -> None:
        """Drop the buffers."""
        self._buffers.clear()


class Assembly:
    """One pass over a plan on one rank of a copy of the model. Every rank of it calls the same methods.

    Args:
        parameters: this rank's parameters by their Megatron name.
        group: the copy; its ranks are the plan's ranks.
        memory: where the buckets lie, and the engine's type.
        timeout_s: longest wait for another rank.
    """

    def __init__(
        self,
        plan: Plan,
        parameters: Mapping[str, torch.Tensor],
        group: dist.ProcessGroup,
        memory: BucketMemory,
        timeout_s: float,
    ) -> None:
        self._rounds = plan.rounds
        self._parameters = parameters
        self._rank = group.rank()
        self._members = dist.get_process_group_ranks(group)
        self._memory = memory
        self._timeout = datetime.timedelta(seconds=timeout_s)
        self._largest = {
            lane: max(bucket.size for bucket in plan.buckets if bucket.lane == lane)
            for lane in range(plan.lanes)
        }
        self._messages: list[_Message] = []
        self._works: list[dist.Work] = []
        self._posted = ""

    @torch.no_grad()
    def post(self, number: int) -> None:
        """Start to exchange the slices of round ``number``; do nothing past the last one."""
        if number >= len(self._rounds):
            return
        operations: list[dist.P2POp] = []
        for bucket in self._rounds[number]:
            if bucket.assembler == self._rank:
                self._receive(bucket, operations)
            else:
                self._send(bucket, operations)
        self._posted = self._describe(number, operations)
        # Together, so that NCCL groups them: one by one, ranks that send to each other in turn could block.
        self._works = dist.batch_isend_irecv(operations) if operations else []

    def _send(self, bucket: Bucket, operations: list[dist.P2POp]) -> None:
        message = _Message(bucket, self._rank, self._packed(bucket))
        if message.flat.numel():
            self._messages.append(message)  # alive until it has been sent
            operations.append(dist.P2POp(dist.isend, message.flat, self._members[bucket.assembler]))

    def _receive(self, bucket: Bucket, operations: list[dist.P2POp]) -> None:
        for rank, member in enumerate(self._members):
            if rank == self._rank:
                self._messages.append(_Message(bucket, rank, self._packed(bucket)))
                continue
            size = sum(move.size for _, move in bucket.moves_from(rank))
            if size:
                flat = torch.empty(size, dtype=self._memory.dtype, device=self._memory.device)
                self._messages.append(_Message(bucket, rank, flat))
                operations.append(dist.P2POp(dist.irecv, flat, member))

    def _packed(self, bucket: Bucket) -> torch.Tensor:
        """Return this rank's slices of a bucket, back to back, in the engine's type."""
        moves = bucket.moves_from(self._rank)
        size = sum(move.size for _, move in moves)
        flat = torch.empty(size, dtype=self._memory.dtype, device=self._memory.device)
        offset = 0
        for _, move in moves:
            part = flat[offset : offset + move.size].view(move.source.shape)
            part.copy_(plain(self._parameters[move.parameter])[move.source.slices])
            offset += move.size
        return flat

    @torch.no_grad()
    def finish(self, number: int) -> list[FilledBucket]:
        """Wait for round ``number`` and return the buckets that this rank assembles.

        Raises:
            WeightError: a rank did not answer in time or was lost; names the buckets and the ranks.
        """
        self._wait()
        filled = {
            bucket.lane: FilledBucket(bucket, self._memory.take(bucket, self._largest[bucket.lane]))
            for bucket in self._rounds[number]
            if bucket.assembler == self._rank
        }
        for item in filled.values():
            if _covered(item.bucket) < item.bucket.size:
                item.flat.zero_()  # vocabulary padding
        for message in self._messages:
            if message.bucket.lane in filled:
                _place(message, filled[message.bucket.lane].flat)
        self._messages = []
        return list(filled.values())

    def _wait(self) -> None:
        try:
            for work in self._works:
                work.wait(self._timeout)
        except RuntimeError as error:  # gloo and NCCL report a time-out and a lost peer alike
            seconds = self._timeout.total_seconds()
            raise WeightError(
                f"weight synchronisation: {self._posted}; no answer within {seconds:.0f} s, "
                f"or a rank was lost: {error}"
            ) from error
        finally:
            self._works = []

    def _describe(self, number: int, operations: list[dist.P2POp]) -> str:
        peers = sorted({operation.peer for operation in operations})
        buckets = ", ".join(str(bucket) for bucket in self._rounds[number])
        return f"rank {dist.get_rank()} exchanged slices of {buckets} with ranks {peers}"


def _covered(bucket: Bucket) -> int:
    return sum(move.size for slot in bucket.slots for move in slot.planned.moves)


def _place(message: _Message, flat: torch.Tensor) -> None:
    """Copy the slices of a message to where they belong in the bucket."""
    offset = 0
    for slot, move in message.bucket.moves_from(message.rank):
        part = message.flat[offset : offset + move.size].view(move.source.shape)
        _view(flat, slot)[move.target.slices] = part
        offset += move.size
