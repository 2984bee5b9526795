"""Weight synchronisation: the order of its steps, its proof and its account.

pause -> update -> flush the cache -> (verify) -> new version -> continue, the same on every server. A server
is only let go when all servers of all copies of the model have everything; after a failure it stays paused,
so that none ever samples from a mixture.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol, TypeVar

import torch
import torch.distributed as dist

from megatron_srpo import platform
from megatron_srpo.errors import EngineError, UserError
from megatron_srpo.model.architecture import Qwen3Architecture
from megatron_srpo.model.chunks import vocab_rows_of
from megatron_srpo.model.parallel import ProcessGroups
from megatron_srpo.weights.agreement import together
from megatron_srpo.weights.assemble import Assembly, BucketMemory
from megatron_srpo.weights.checksum import describe_difference, engine_checksum
from megatron_srpo.weights.load import model_table
from megatron_srpo.weights.plan import Plan, Training, plan_shards
from megatron_srpo.weights.transports.base import EngineServer, Transport, wait_all

#: What becomes of requests in flight: "abort" ends them, "retract" lets them go on with the new weights, from
#: a recomputed cache.
PauseMode = Literal["abort", "retract"]

T = TypeVar("T")


class ControlledServer(EngineServer, Protocol):
    """A server with the steps around an update."""

    def pause(self, mode: PauseMode) -> "Future[None]":
        """Stop sampling."""
        ...

    def resume(self) -> "Future[None]":
        """Go on sampling."""
        ...

    def flush_cache(self, timeout_s: float) -> "Future[None]":
        """Drop all cached keys and values."""
        ...

    def begin_update(self) -> "Future[None]":
        """Open an update session."""
        ...

    def end_update(self) -> "Future[None]":
        """Close the update session."""
        ...

    def set_version(self, version: int) -> "Future[None]":
        """Name the weights."""
        ...

    def checksums(self) -> "Future[list[dict[str, str]]]":
        """Return the checksum of every tensor by tensor-parallel rank."""
        ...


@dataclass(frozen=True)
class SyncSettings:
    """How weights are sent.

    Attributes:
        dtype: type of the engine's weights.
        bucket_bytes: most bytes of a bucket; a rank that assembles holds two.
        timeout_s: longest wait for a rank or a server in one step.
        verify_every: compare checksums at the first synchronisation and then at every so many; 0 never.
        pause_mode: what becomes of requests in flight.
    """

    dtype: torch.dtype
    bucket_bytes: int = 512 << 20
    timeout_s: float = 300.0
    verify_every: int = 50
    pause_mode: PauseMode = "retract"


@dataclass
class SyncReport:
    """The account of one synchronisation of this copy of the model.

    Attributes:
        version: of the weights.
        sent_bytes: bytes assembled for each server.
        seconds: by phase: pause, open, gather (other ranks), send (servers), load, flush, verify, resume.
        verified: whether checksums were compared.
        link_rate: bytes per second of the bare link, on the copy's first rank; 0 elsewhere.
    """

    version: int
    sent_bytes: int
    seconds: dict[str, float] = field(default_factory=dict)
    verified: bool = False
    link_rate: float = 0.0

    @property
    def total_seconds(self) -> float:
        """Seconds of all phases."""
        return sum(self.seconds.values())

    @property
    def gigabytes_per_second(self) -> float:
        """Rate of gathering, sending and loading together."""
        moving = sum(self.seconds.get(name, 0.0) for name in ("gather", "send", "load"))
        return self.sent_bytes / 1e9 / max(moving, 1e-9)

    @property
    def link_share(self) -> float | None:
        """Share of the link's rate that was reached; None where it was not measured."""
        return self.gigabytes_per_second * 1e9 / self.link_rate if self.link_rate else None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of the block to a phase."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


class WeightSync:
    """Pushes the policy's weights to the servers that this copy of it looks after. Collective over all ranks.

    Args:
        policy: this rank's model.
        engine_tp, engine_ep: tensor and expert parallel sizes of every server.
    """

    def __init__(
        self,
        policy: torch.nn.Module,
        arch: Qwen3Architecture,
        groups: ProcessGroups,
        transport: Transport,
        engine_tp: int,
        settings: SyncSettings,
        engine_ep: int = 1,
    ) -> None:
        self._groups, self._arch, self._settings = groups, arch, settings
        self._transport, self._engine_tp = transport, engine_tp
        self._parameters = {
            entry.parameter: parameter for entry, parameter in model_table(policy, arch, groups)
        }
        rows = vocab_rows_of(policy) // groups.tp_size
        training = Training(groups.tp_size, groups.stages, rows, groups.ep_size)
        limit = max(1, settings.bucket_bytes // settings.dtype.itemsize)
        self._plan = transport.plan(arch, training, engine_tp, limit)
        self._shards = plan_shards(arch, training, engine_tp, limit, engine_ep)
        self._memory = transport.memory(settings.dtype, platform.device())
        self._pushes = 0

    @property
    def plan(self) -> Plan:
        """The plan that is carried out at every push."""
        return self._plan

    @property
    def timeout_s(self) -> float:
        """Longest wait in one step."""
        return self._settings.timeout_s

    def reset(self) -> None:
        """Forget what connects to the servers: some were started anew."""
        self._transport.abandon()

    def push(
        self,
        servers: Sequence[ControlledServer],
        version: int,
        verify: bool = False,
        serving: bool = True,
    ) -> SyncReport:
        """Give ``servers`` the weights, under ``version``. Collective over all ranks of the job.

        Args:
            servers: on the first rank of each copy, the servers that it looks after; empty on the others.
            verify: compare checksums even when it is not their turn.
            serving: whether this copy looks after any server (known on all its ranks).

        Raises:
            EngineError: some rank of the job failed; names rank, server and step, the same on all ranks. The
                servers stay paused, and hold a mixture.
        """
        report = SyncReport(version, self._bytes() if serving else 0)
        try:
            together(lambda: self._update(servers, version, report, verify) if serving else None)
            with report.phase("resume"):
                together(lambda: self._everywhere(servers, "continuing", lambda server: server.resume()))
        except EngineError as error:
            raise EngineError(f"weight synchronisation failed: {error}") from error
        self._pushes += 1
        return report

    def _bytes(self) -> int:
        return sum(bucket.size for bucket in self._plan.buckets) * self._settings.dtype.itemsize

    def _update(
        self, servers: Sequence[ControlledServer], version: int, report: SyncReport, verify: bool
    ) -> None:
        """Do everything but let the servers go. Collective over the copy, which fails as one."""
        with report.phase("pause"):
            self._together(lambda: self._pause(servers))
        try:
            with report.phase("open"):
                self._together(lambda: self._transport.open(servers, version))
            report.link_rate = self._transport.link_rate
            self._send_rounds(report)
            with report.phase("load"):
                self._together(lambda: self._finish(servers))
            with report.phase("flush"):
                self._together(lambda: self._flush(servers))
        except UserError:
            self._transport.abandon()
            raise
        every = self._settings.verify_every
        if verify or (every and self._pushes % every == 0):
            with report.phase("verify"):
                self._verify(servers)
            report.verified = True
        with report.phase("resume"):
            self._together(
                lambda: self._everywhere(servers, "naming the version", lambda s: s.set_version(version))
            )

    def _pause(self, servers: Sequence[ControlledServer]) -> None:
        mode = self._settings.pause_mode
        self._everywhere(servers, "pausing", lambda server: server.pause(mode))
        self._everywhere(servers, "beginning the update", lambda server: server.begin_update())

    def _finish(self, servers: Sequence[ControlledServer]) -> None:
        self._transport.finish().wait(self._settings.timeout_s)
        self._everywhere(servers, "ending the update", lambda server: server.end_update())
        self._transport.done()

    def _flush(self, servers: Sequence[ControlledServer]) -> None:
        """Drop what the old weights computed, before anything is sampled from the new ones."""
        timeout_s = self._settings.timeout_s
        self._everywhere(servers, "flushing the cache", lambda server: server.flush_cache(timeout_s))

    def _send_rounds(self, report: SyncReport) -> None:
        """Send every round while the next one is gathered.

        A lane's buffer is written again two rounds later, so a round must have arrived before the next but
        one is unpacked: that is why the wait for it stands before ``post``.
        """
        assembly = self._assembly(self._plan, self._memory)
        rounds = len(self._plan.rounds)
        on_the_way: Callable[[], None] = _nothing
        self._together(partial(assembly.post, 0))
        for number in range(rounds):
            with report.phase("gather"):
                filled = self._together(partial(assembly.finish, number))
            with report.phase("send"):
                self._together(on_the_way)
                self._together(partial(assembly.post, number + 1))
                sending = self._together(partial(self._transport.send, filled))
            on_the_way = partial(sending.wait, self._settings.timeout_s)
        with report.phase("send"):
            self._together(on_the_way)

    def _assembly(self, plan: Plan, memory: BucketMemory) -> Assembly:
        return Assembly(plan, self._parameters, self._groups.copy, memory, self._settings.timeout_s)

    def _verify(self, servers: Sequence[ControlledServer]) -> None:
        """Compare what the servers hold with what the trainer's own shards say they should hold.

        The expectation is gathered anew through the plan of engine shards, whatever the transport was.

        Raises:
            EngineError: names server, rank and tensors.
        """
        expected = self._expected()
        self._together(lambda: self._compare(servers, expected))

    def _expected(self) -> list[dict[str, str]]:
        """Return, on the copy's first rank, checksums by engine rank and tensor."""
        memory = BucketMemory(self._settings.dtype, platform.device())
        assembly = self._assembly(self._shards, memory)
        mine: list[tuple[int, str, str]] = []
        for number in range(len(self._shards.rounds)):
            self._together(partial(assembly.post, number))
            for item in self._together(partial(assembly.finish, number)):
                mine += [(item.bucket.lane, name, engine_checksum(tensor)) for name, tensor in item.tensors()]
        gathered: list[list[tuple[int, str, str]]] = [[] for _ in range(self._groups.copy.size())]
        dist.all_gather_object(gathered, mine, group=self._groups.copy)
        expected: list[dict[str, str]] = [{} for _ in range(self._engine_tp)]
        for lane, name, checksum in (entry for part in gathered for entry in part):
            expected[lane][name] = checksum
        return expected

    def _compare(self, servers: Sequence[ControlledServer], expected: list[dict[str, str]]) -> None:
        held = self._everywhere(servers, "reading checksums", lambda server: server.checksums())
        for name, ranks in held.items():
            if len(ranks) != self._engine_tp:
                raise EngineError(
                    f"server {name} reports {len(ranks)} tensor-parallel ranks, expected {self._engine_tp}; "
                    "set rollout.sglang.tensor_parallel to what it runs with"
                )
            for rank, (wanted, found) in enumerate(zip(expected, ranks, strict=True)):
                difference = describe_difference(wanted, found)
                if difference is not None:
                    raise EngineError(
                        f"server {name}, rank {rank}: weights are not those that were sent: {difference}. "
                        "Its model, type or version may not be the expected one (rollout.sglang)"
                    )

    def _everywhere(
        self,
        servers: Sequence[ControlledServer],
        step: str,
        call: Callable[[ControlledServer], "Future[T]"],
    ) -> dict[str, T]:
        """Call all servers at once and wait for them."""
        answers: dict[str, Future[Any]] = {server.name: call(server) for server in servers}
        return wait_all(answers, self._settings.timeout_s, step)

    def _together(self, action: Callable[[], T]) -> T:
        """Do something on every rank of the copy; all fail when one does."""
        return together(action, self._groups.copy)


def _nothing() -> None:
    """Stand for the wait of a round before the first."""
