"""Same host: the engine maps the buckets, through shared memory on CPU and CUDA IPC on GPUs.

Every engine rank gets exactly its own parameters, ready to be copied into place, so a server is sent the
model once whatever its tensor parallel size. An engine with quantised weights cuts and quantises whole
tensors itself, so it gets those.
"""

import base64
import io
from collections.abc import Sequence
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing import reductions

from megatron_srpo.model.architecture import Qwen3Architecture
from megatron_srpo.model.parallel import ProcessGroups
from megatron_srpo.weights.assemble import BucketMemory, FilledBucket
from megatron_srpo.weights.plan import Plan, Training, plan_shards, plan_whole
from megatron_srpo.weights.transports.base import EngineServer, Sending, label_of
from megatron_srpo.weights.transports.link import PROBE_BYTES, copy_rate

# Position of the device in the arguments that rebuild a CUDA tensor. SGLang takes a device's UUID in its
# place: the two processes may number their devices differently.
_DEVICE_ARGUMENT = 6


#: Handles of a bucket by lane, one for each process that will open it.
Handles = dict[int, list[str]]


class SharedBucketMemory(BucketMemory):
    """Buckets in named shared memory on CPU, in ordinary device memory on CUDA."""

    def allocate(self, elements: int) -> torch.Tensor:
        """Return a new flat buffer that other processes can map."""
        if self.device.type == "cuda":
            return super().allocate(elements)
        # By name: the other way, passing file descriptors, wants both processes to share a secret.
        storage = torch.UntypedStorage._new_using_filename_cpu(elements * self.dtype.itemsize)
        return torch.empty(0, dtype=self.dtype).set_(storage)


class TensorTransport:
    """Shared memory or CUDA IPC.

    Args:
        whole: send whole tensors under their Hugging Face names instead of each rank's own parameters.
        engine_ep: expert parallel size of the servers.
    """

    def __init__(
        self, groups: ProcessGroups, engine_tp: int, whole: bool = False, engine_ep: int = 1
    ) -> None:
        self._group = groups.copy
        self._engine_tp, self._engine_ep = engine_tp, engine_ep
        self._whole = whole
        self._servers: Sequence[EngineServer] = ()
        self._receivers = 0
        self._memory: BucketMemory | None = None
        self.link_rate = 0.0
        self._version = 0

    def plan(self, arch: Qwen3Architecture, training: Training, engine_tp: int, limit: int) -> Plan:
        """Plan one lane per engine rank, or one of whole tensors; see :class:`Transport`."""
        if self._whole:
            return plan_whole(arch, training, [0], limit)
        return plan_shards(arch, training, engine_tp, limit, self._engine_ep)

    def memory(self, dtype: torch.dtype, device: torch.device) -> BucketMemory:
        """Return memory that other processes can map."""
        self._memory = SharedBucketMemory(dtype, device)
        return self._memory

    def open(self, servers: Sequence[EngineServer], version: int) -> None:
        """Remember whom to send to, and tell the other ranks how many will open each bucket."""
        self._servers, self._version = servers, version
        if servers and not self.link_rate and self._memory is not None:
            self.link_rate = copy_rate(self._memory.allocate(PROBE_BYTES // self._memory.dtype.itemsize))
        box = [len(servers) * (self._engine_tp if self._whole else 1)]
        dist.broadcast_object_list(box, group=self._group, group_src=0)
        self._receivers = box[0]

    def send(self, filled: list[FilledBucket]) -> Sending:
        """Collect the handles of all lanes on the first rank, which gives each engine rank its own.

        Each process that opens a bucket needs a handle of its own: handles are counted, and the count that
        decides when memory is freed would fall twice for one that is used twice.
        """
        handles = {
            item.bucket.lane: [_encode(list(item.tensors())) for _ in range(self._receivers)]
            for item in filled
        }
        first = self._group.rank() == 0
        gathered: list[Handles] | None = [{} for _ in range(self._group.size())] if first else None
        if filled and filled[0].flat.is_cuda:
            torch.cuda.current_stream().synchronize()  # the engine reads on a stream of its own
        dist.gather_object(handles, gathered, group_dst=0, group=self._group)
        by_lane = {lane: found for part in gathered or () for lane, found in part.items()}
        answers = {server.name: self._load(server, by_lane) for server in self._servers}
        return Sending(label_of(filled), answers)

    def _load(self, server: EngineServer, by_lane: Handles) -> Any:
        """Give a server the next unused handle for each of its ranks."""
        if self._whole:
            payloads = [by_lane[0].pop() for _ in range(self._engine_tp)]
            return server.load_from_tensors(payloads, None, self._version)
        lanes = (by_lane.get(rank) for rank in range(self._engine_tp))
        payloads = [found.pop() if found else _encode([]) for found in lanes]
        return server.load_from_tensors(payloads, "direct", self._version)

    def finish(self) -> Sending:
        """Do nothing: every round was loaded when it was sent."""
        return Sending("finishing", {})

    def done(self) -> None:
        """Do nothing: the buffers are used again."""

    def abandon(self) -> None:
        """Do nothing: a new attempt overwrites the buffers."""


class _Pickler(ForkingPickler):
    """Pickles handles of tensors; CUDA devices by their UUID."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.is_cuda:
            rebuild, arguments = reductions.reduce_tensor(value)
            uuid = str(torch.cuda.get_device_properties(arguments[_DEVICE_ARGUMENT]).uuid)
            return rebuild, (*arguments[:_DEVICE_ARGUMENT], uuid, *arguments[_DEVICE_ARGUMENT + 1 :])
        return NotImplemented


def _encode(named: list[tuple[str, torch.Tensor]]) -> str:
    """Pickle handles, not content. The receiving server is of this run, and reads only what it knows."""
    previous = torch.multiprocessing.get_sharing_strategy()
    torch.multiprocessing.set_sharing_strategy("file_system")
    try:
        buffer = io.BytesIO()
        _Pickler(buffer).dump(named)
    finally:
        torch.multiprocessing.set_sharing_strategy(previous)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
