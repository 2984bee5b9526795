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
from megatron_srpo.rollout.sglang.fleet import Fleet
from megatron_srpo.rollout.sglang.guard import Guard
from megatron_srpo.rollout.sglang.server import SGLangServer
from megatron_srpo.rollout.sglang.watch import Condition, ServerWatch
from megatron_srpo.weights.agreement import together
from megatron_srpo.weights.sync import SyncReport, WeightSync
from megatron_srpo.weights.transports.base import wait_all

# A server that does not even say its name within this time, though nothing runs on it, is frozen.
_PROBE_S = 10.0
# Memory that a server can give back while the trainer works, in the order in which it is taken again.
_WEIGHTS, _CACHE = "weights", "kv_cache"


class SGLangPublisher:
    """A :class:`~megatron_srpo.rollout.engine.WeightPublisher` for servers. Collective over the job.

    Copy ``c`` of ``C`` of the model (a replica, or several with experts spread over them) looks after the
    servers whose index is ``c`` modulo ``C``.

    Args:
        fleet: on global rank 0, which starts and restarts servers; None elsewhere.
        engine: on the leader of each replica; None elsewhere.
        servers: how many there are, known on all ranks.
        hang_timeout_s: silence after which a server counts as frozen.
        attempts: of one publication.
        colocated: release the servers' memory while the trainer works.
    """

    def __init__(
        self,
        fleet: Fleet | None,
        engine: SGLangEngine | None,
        sync: WeightSync,
        groups: ProcessGroups,
        servers: int,
        hang_timeout_s: float = 300.0,
        attempts: int = 3,
        colocated: bool = False,
    ) -> None:
        self._fleet, self._engine, self._sync, self._groups = fleet, engine, sync, groups
        self._serving = groups.sends and groups.copy_index < servers
        self._attempts, self._colocated = attempts, colocated
        self._version = 0
        self._resting = False
        self._out_of_routing: set[int] = set()
        self._hang_timeout_s = hang_timeout_s
        self._watches: list[ServerWatch] = []
        self._guard: Guard | None = None
        if engine is not None:
            self._watch_anew(engine)
            self._guard = Guard(engine, self._conditions)

    def _watch_anew(self, engine: SGLangEngine) -> None:
        """Watch the servers from this rank, unless it holds the fleet, which does."""
        for watch in self._watches:
            watch.stop()
        if self._fleet is None:
            self._watches = [
                ServerWatch(server.endpoint, None, self._hang_timeout_s) for server in engine.servers
            ]
            for watch in self._watches:
                watch.start()

    def _conditions(self) -> dict[str, Condition]:
        if self._fleet is not None:
            urls = [endpoint.url for endpoint in self._fleet.endpoints]
            return dict(zip(urls, self._fleet.conditions(), strict=True))
        return {watch.endpoint.url: watch.condition for watch in self._watches}

    @property
    def _mine(self) -> Sequence[SGLangServer]:
        if self._engine is None or self._groups.copy.rank() > 0:
            return ()
        return self._engine.servers[self._groups.copy_index :: self._groups.copies]

    def publish(self, version: int) -> dict[str, float]:
        """Push the weights; dead servers are restarted first, and after a failure. See the protocol."""
        return self._publish(version, set())

    def restore(self) -> None:
        """Restart what is lost and publish the current version again."""
        self._publish(self._version, self._silent())

    def _publish(self, version: int, silent: set[str]) -> dict[str, float]:
        self._wake([_WEIGHTS])
        restarted = self._revive(silent)
        report = self._push(version, verify=restarted)
        self._wake([_CACHE])
        self._resting = False
        self._put_back()
        self._version = version
        if self._engine is not None:
            self._engine.published(version)
        return _metrics(report)

    def rest(self) -> None:
        """Release the servers' memory, where they share the trainer's devices."""
        if self._colocated and not self._resting:
            self._on_all("releasing memory", lambda server: server.release_memory([_CACHE, _WEIGHTS]))
            self._resting = True

    def close(self) -> None:
        """End requests, servers and router."""
        if self._guard is not None:
            self._guard.stop()
        for watch in self._watches:
            watch.stop()
        if self._engine is not None:
            self._engine.close()
        if self._fleet is not None:
            self._fleet.close()

    def _push(self, version: int, verify: bool) -> SyncReport:
        for attempt in range(1, self._attempts + 1):
            try:
                return self._sync.push(self._mine, version, verify or attempt > 1, self._serving)
            except EngineError as error:
                if attempt == self._attempts:
                    raise EngineError(f"{error} (attempt {attempt} of {self._attempts})") from error
                self._tell(f"{error}; trying again")
                # The others hold a mixture, and stay paused until a push succeeds. An update session that the
                # failure left open is closed, or the next could not begin.
                self._revive(self._silent())
                wait([server.end_update() for server in self._mine], timeout=_PROBE_S)
        raise AssertionError("unreachable")

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

    def _revive(self, silent: set[str]) -> bool:
        """Restart servers that are dead, frozen or ``silent`` to their replica; say whether any were."""
        told: list[Any] = [set()] * dist.get_world_size()
        dist.all_gather_object(told, silent)
        action = None if self._fleet is None else partial(self._restart, set().union(*told))
        restarted = from_first_patiently(action)
        if isinstance(restarted, str):
            raise EngineError(restarted)
        if restarted:
            self._sync.reset()
            if self._engine is not None:
                for old, new in restarted:
                    self._engine.replace(old, new)
                self._watch_anew(self._engine)
        return bool(restarted)

    def _restart(self, silent: set[str]) -> list[tuple[str, Endpoint]] | str:
        """Restart on global rank 0; return (old url, new endpoint) of each that was, or what failed."""
        assert self._fleet is not None
        try:
            lost = set(self._fleet.lost())
            lost |= {i for i, endpoint in enumerate(self._fleet.endpoints) if endpoint.url in silent}
            old = {index: self._fleet.endpoints[index].url for index in lost}
            # A router must not use them before they have the current weights.
            self._out_of_routing |= lost
            return [(old[index], self._fleet.restart(index, put_back=False)) for index in sorted(lost)]
        except EngineError as error:
            return str(error)

    def _put_back(self) -> None:
        """Let a router use restarted servers, which now have the current weights."""
        if self._fleet is not None:
            for index in sorted(self._out_of_routing):
                self._fleet.put_back(index)
            self._out_of_routing.clear()

    def _wake(self, tags: list[str]) -> None:
        if self._resting:
            # A server's device may be another rank's.
            platform.give_back_memory()
            dist.barrier()
            self._on_all("taking memory again", lambda server: server.resume_memory(tags))

    def _on_all(self, step: str, call: Callable[[SGLangServer], "Future[None]"]) -> None:
        """Ask something of every server; all ranks fail when one does, so that none goes on alone."""
        together(
            lambda: wait_all({server.name: call(server) for server in self._mine}, self._sync.timeout_s, step)
        )

    def _tell(self, text: str) -> None:
        if self._fleet is not None:
            self._fleet.report(text)


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
