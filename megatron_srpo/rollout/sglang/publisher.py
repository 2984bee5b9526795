"""Publishing weights to SGLang servers, whatever happens to them on the way."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from concurrent.futures import TimeoutError as FutureTimeout
from functools import partial
from typing import Any

import torch.distributed as dist

from megatron_srpo import platform
from megatron_srpo.errors import EngineError
from megatron_srpo.model.parallel import ProcessGroups
from megatron_srpo.rollout.collect import from_first_patiently
from megatron_srpo.rollout.sglang.endpoint import Endpoint
from megatron_srpo.rollout.sglang.engine import SGLangEngine
from megatron_srpo.rollout.sglang.fleet import Fleet, Revival
from megatron_srpo.rollout.sglang.guard import Guard
from megatron_srpo.rollout.sglang.lookout import Lookout
from megatron_srpo.rollout.sglang.owners import server_owners
from megatron_srpo.rollout.sglang.registered import RegisteredFleet
from megatron_srpo.rollout.sglang.registry import Registry
from megatron_srpo.rollout.sglang.server import SGLangServer
from megatron_srpo.rollout.sglang.watch import Condition
from megatron_srpo.weights.agreement import together
from megatron_srpo.weights.sync import SyncReport, WeightSync
from megatron_srpo.weights.transports.base import wait_all

# A server that does not even say its name within this time, though nothing runs on it, is frozen.
_PROBE_S = 10.0
# Memory that a server can give back while the trainer works, in the order in which it is taken again.
_WEIGHTS, _CACHE = "weights", "kv_cache"


class SGLangPublisher:
    """A :class:`~megatron_srpo.rollout.engine.WeightPublisher` for servers. Collective over the job.

    Each copy of the model (a replica, or several with experts spread over them) looks after some of the
    servers: see :mod:`.owners`.

    Args:
        fleet: on global rank 0, which starts and restarts servers, or knows who has registered; None
            elsewhere.
        engine: on the leader of each replica; None elsewhere.
        endpoints: the servers, known on all ranks.
        hang_timeout_s: silence after which a server counts as frozen.
        attempts: of one publication.
        colocated: release the servers' memory while the trainer works.
        registry: of registered servers; known on all ranks.
    """

    def __init__(
        self,
        fleet: Fleet | RegisteredFleet | None,
        engine: SGLangEngine | None,
        sync: WeightSync,
        groups: ProcessGroups,
        endpoints: Sequence[Endpoint],
        hang_timeout_s: float = 300.0,
        attempts: int = 3,
        colocated: bool = False,
        registry: Registry | None = None,
    ) -> None:
        self._fleet, self._engine, self._sync, self._groups = fleet, engine, sync, groups
        self._owners = server_owners(endpoints, groups)
        self._attempts, self._colocated = attempts, colocated
        self._version = 0
        self._at_rest = False
        self._resting: set[str] = set()  # those of this rank
        self._hang_timeout_s, self._registry = hang_timeout_s, registry
        self._lookout: Lookout | None = None
        self._guard: Guard | None = None
        if engine is not None:
            self._look_out(engine)
            self._guard = Guard(engine, self._known, None if fleet is None else fleet.take_out)

    def _look_out(self, engine: SGLangEngine) -> None:
        """Watch the servers from this rank, unless it holds the fleet, which does."""
        if self._fleet is None:
            before, endpoints = self._lookout, [server.endpoint for server in engine.servers]
            self._lookout = Lookout(endpoints, self._hang_timeout_s, self._registry)
            if before is not None:
                before.stop()

    def _known(self) -> dict[str, Condition]:
        if self._fleet is not None:
            return self._fleet.known()
        return {} if self._lookout is None else self._lookout.known()

    @property
    def _serving(self) -> bool:
        """Whether this rank's copy looks after any server."""
        return self._groups.sends and self._groups.copy_index in self._owners

    @property
    def _mine(self) -> Sequence[SGLangServer]:
        if self._engine is None or self._groups.copy.rank() > 0:
            return ()
        pairs = zip(self._engine.servers, self._owners, strict=True)
        return [server for server, owner in pairs if owner == self._groups.copy_index]

    def publish(self, version: int) -> dict[str, float]:
        """Push the weights; lost servers are restarted or given up first, and after a failure; newcomers are
        taken in. See the protocol."""
        return self._publish(version, set())

    def restore(self) -> None:
        """Do the same with the current version."""
        self._publish(self._version, self._silent())

    def _publish(self, version: int, silent: set[str]) -> dict[str, float]:
        self._wake([_WEIGHTS])
        revival = self._revive(silent)
        report = self._push(version, verify=revival.changed)
        self._wake([_CACHE])
        self._at_rest = False
        self._resting.clear()
        self._settle()
        self._version = version
        if self._engine is not None:
            self._engine.published(version)
        return _metrics(report)

    def rest(self) -> None:
        """Release the servers' memory, where they share the trainer's devices."""
        if self._colocated and not self._at_rest:
            self._on_all(
                "releasing memory", self._mine, lambda server: server.release_memory([_CACHE, _WEIGHTS])
            )
            self._resting = {server.name for server in self._mine}
            self._at_rest = True

    def close(self) -> None:
        """End requests, servers and router."""
        if self._guard is not None:
            self._guard.stop()
        if self._lookout is not None:
            self._lookout.stop()
        if self._engine is not None:
            self._engine.close()
        if self._fleet is not None:
            self._fleet.close()

    def _push(self, version: int, verify: bool) -> SyncReport:
        """Push until it succeeds. A failure that went away with servers that were given up does not count."""
        failures = 0
        while True:
            try:
                return self._sync.push(self._mine, version, verify, self._serving)
            except EngineError as error:
                failures, verify = failures + 1, True
                if failures >= self._attempts and self._registry is None:
                    raise self._failed(error) from error
                self._tell(f"{error}; trying again")
                # The others hold a mixture, and stay paused until a push succeeds. An update session that the
                # failure left open is closed, or the next could not begin.
                if self._revive(self._silent(), admit=False).given_up:
                    failures -= 1
                if failures >= self._attempts:
                    raise self._failed(error) from error
                wait([server.end_update() for server in self._mine], timeout=_PROBE_S)

    def _failed(self, error: EngineError) -> EngineError:
        return EngineError(f"{error} (attempt {self._attempts} of {self._attempts})")

    def _silent(self) -> set[str]:
        """Return the names of this replica's servers that do not answer at all."""
        answers = {server.name: server.info() for server in self._mine}
        silent = set()
        for name, answer in answers.items():
            try:
                answer.result(_PROBE_S)
            except (EngineError, FutureTimeout):
                silent.add(name)
        return silent

    def _revive(self, silent: set[str], admit: bool = True) -> Revival:
        """Restart or give up servers that are dead, frozen or ``silent`` to their replica. Collective.

        Args:
            admit: take in registered newcomers, too.
        """
        told: list[Any] = [set()] * dist.get_world_size()
        dist.all_gather_object(told, silent)
        action = None if self._fleet is None else partial(_ask, self._fleet, set().union(*told), admit)
        revival = from_first_patiently(action)
        if isinstance(revival, str):
            raise EngineError(revival)
        if revival.changed:
            self._sync.reset()
            self._owners = server_owners(revival.endpoints, self._groups)
            if self._engine is not None:
                self._engine.set_servers(revival.endpoints)
                self._look_out(self._engine)
        return revival

    def _settle(self) -> None:
        """Let a router use servers that were revived, which now have the current weights."""
        if self._fleet is not None:
            self._fleet.settle()

    def _wake(self, tags: list[str]) -> None:
        if self._at_rest:
            # A server's device may be another rank's.
            platform.give_back_memory()
            dist.barrier()
            # Those that came meanwhile have theirs.
            sleepers = [server for server in self._mine if server.name in self._resting]
            self._on_all("taking memory again", sleepers, lambda server: server.resume_memory(tags))

    def _on_all(
        self, step: str, servers: Sequence[SGLangServer], call: Callable[[SGLangServer], "Future[None]"]
    ) -> None:
        """Ask something of servers; all ranks fail when one does, so that none goes on alone."""
        together(
            lambda: wait_all({server.name: call(server) for server in servers}, self._sync.timeout_s, step)
        )

    def _tell(self, text: str) -> None:
        if self._fleet is not None:
            self._fleet.report(text)


def _ask(fleet: Fleet | RegisteredFleet, silent: set[str], admit: bool) -> Revival | str:
    """Return what became of lost servers, or what failed: on global rank 0, for all ranks."""
    try:
        return fleet.revive(silent, admit)
    except EngineError as error:
        return str(error)


def _metrics(report: SyncReport) -> dict[str, float]:
    """Return the account of a synchronisation as metrics."""
    phases = {f"sync/{name}_seconds": seconds for name, seconds in report.seconds.items()}
    if report.link_share is not None:
        phases["sync/link_share"] = report.link_share
    return {
        **phases,
        "sync/bytes": float(report.sent_bytes),
        "sync/gigabytes_per_second": report.gigabytes_per_second,
        "sync/verified": float(report.verified),
    }
