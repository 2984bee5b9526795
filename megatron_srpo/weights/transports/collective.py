"""Anywhere on the network: SGLang's own weight-update group, over NCCL on GPUs and gloo on CPU.

The group is a broadcast from one trainer rank, so every engine rank receives whole tensors and keeps its
part. The trainer sends the model once, whatever the number of servers and their tensor parallel size.
"""

import uuid
from collections.abc import Sequence

import torch
import torch.distributed as dist

from megatron_srpo import platform
from megatron_srpo.model.architecture import Qwen3Architecture
from megatron_srpo.model.parallel import ProcessGroups
from megatron_srpo.weights.assemble import BucketMemory, FilledBucket
from megatron_srpo.weights.plan import Plan, Training, plan_whole
from megatron_srpo.weights.transports import sender_group
from megatron_srpo.weights.transports.base import EngineServer, Sending, label_of, wait_all
from megatron_srpo.weights.transports.link import PROBE_BYTES, best_rate

#: Sent to measure the link. No model has a tensor of this name; SGLang notes in its log that it ignores it.
_PROBE = "megatron_srpo.link_probe"


class CollectiveTransport:
    """Broadcasts flat buckets from the first rank of the copy.

    Args:
        address: where servers reach this host; "" finds it.
        timeout_s: longest wait for a server to join.
    """

    def __init__(
        self, groups: ProcessGroups, engine_tp: int, address: str = "", timeout_s: float = 300.0
    ) -> None:
        self._replica = groups.copy
        self._engine_tp = engine_tp
        self._address = address
        self._timeout_s = timeout_s
        self._group: dist.ProcessGroup | None = None
        self._name = ""
        self._servers: Sequence[EngineServer] = ()
        self._version = 0
        self._device = torch.device("cpu")
        self.link_rate = 0.0

    def plan(self, arch: Qwen3Architecture, training: Training, engine_tp: int, limit: int) -> Plan:
        """Plan one lane of whole tensors on the sender."""
        return plan_whole(arch, training, [0], limit)

    def memory(self, dtype: torch.dtype, device: torch.device) -> BucketMemory:
        """Return ordinary memory."""
        self._device = device
        return BucketMemory(dtype, device)

    def open(self, servers: Sequence[EngineServer], version: int) -> None:
        """Form the group, unless the one of the last time still fits.

        Raises:
            EngineError: a server did not join.
        """
        known = [server.name for server in self._servers]
        self._version = version
        if not servers or (self._group is not None and known == [server.name for server in servers]):
            return
        self._leave_politely()
        self._servers = servers
        self._form(servers)

    def _form(self, servers: Sequence[EngineServer]) -> None:
        # A new name each time: members of a group that failed may still know the old one.
        self._name = f"megatron-srpo-{uuid.uuid4().hex[:12]}"
        address = self._address or sender_group.local_address([server.name for server in servers])
        port = sender_group.free_port(address)
        world = 1 + len(servers) * self._engine_tp
        answers = {
            server.name: server.join_group(
                address, port, 1 + index * self._engine_tp, world, self._name, platform.backend()
            )
            for index, server in enumerate(servers)
        }
        self._group = sender_group.join_as_sender(
            address, port, world, self._name, platform.backend(), self._timeout_s
        )
        wait_all(answers, self._timeout_s, f"joining the group {self._name}")
        flat = torch.zeros(PROBE_BYTES, dtype=torch.uint8, device=self._device)
        probe = [(_PROBE, "uint8", [PROBE_BYTES])]
        self.link_rate = best_rate(
            lambda: self._broadcast(probe, flat, "probing the link").wait(self._timeout_s), PROBE_BYTES
        )

    def send(self, filled: list[FilledBucket]) -> Sending:
        """Announce the bucket to the servers and broadcast it."""
        if not filled or self._group is None:
            return Sending(label_of(filled), {})
        (item,) = filled
        dtype = str(item.flat.dtype).removeprefix("torch.")
        tensors = [slot.planned.tensor for slot in item.bucket.slots]
        content = [(tensor.name, dtype, list(tensor.shape)) for tensor in tensors]
        return self._broadcast(content, item.flat, label_of(filled))

    def _broadcast(
        self, content: list[tuple[str, str, list[int]]], flat: torch.Tensor, label: str
    ) -> Sending:
        """Announce tensors, given as (name, type, shape), that lie back to back in ``flat``, and send it."""
        assert self._group is not None
        names, dtypes, shapes = (list(column) for column in zip(*content, strict=True))
        answers = {
            server.name: server.load_from_group(
                names, dtypes, shapes, self._name, self._version, "flattened_bucket"
            )
            for server in self._servers
        }
        return Sending(label, answers, (sender_group.broadcast(flat, self._group),))

    def finish(self) -> Sending:
        """Do nothing: every round was loaded when it was sent."""
        return Sending("finishing", {})

    def done(self) -> None:
        """Keep the group for the next time."""

    def abandon(self) -> None:
        """Drop the group: a member may be gone, or wait for a broadcast that never comes."""
        if self._group is not None:
            sender_group.leave(self._group)
        self._group, self._servers = None, ()

    def _leave_politely(self) -> None:
        """Ask members that still live to leave; whether they do does not matter."""
        for server in self._servers if self._group is not None else ():
            server.leave_group(self._name)
        self.abandon()
