"""Keeps the servers of one machine running, and their entries in the registry true."""

import datetime
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from megatron_srpo import platform
from megatron_srpo.config.sglang import SGLangConfig
from megatron_srpo.errors import EngineError
from megatron_srpo.rollout.sglang.options import server_arguments
from megatron_srpo.rollout.sglang.process import HttpProcess, sglang_server
from megatron_srpo.rollout.sglang.registry import Entry, Registry, new_incarnation
from megatron_srpo.rollout.sglang.watch import Condition, ServerWatch

_POLL_S = 0.5
_LOOK_EVERY_S = 3.0


@dataclass
class _Place:
    """A slot that this machine fills; ``entry`` and ``watch`` are there while its server serves."""

    slot: int
    server: HttpProcess
    entry: Entry | None = None
    watch: ServerWatch | None = None
    restarts: int = 0
    looked_at: float = 0.0


class Keeper:
    """Starts servers, registers each when it serves, and starts anew what dies or freezes.

    Args:
        config: of one server; its ``host`` is the address at which others reach this machine.
        model_path: folder from which servers load their first weights.
        dtype: the model's type, for ``config.dtype = "auto"``.
        log_dir: folder of the servers' logs, one per slot.
        slots: that this machine's servers take; the first one uses the first GPUs.
        report: is given a line for whatever happens.
    """

    def __init__(
        self,
        config: SGLangConfig,
        model_path: str | Path,
        dtype: str,
        log_dir: Path,
        registry: Registry,
        slots: range,
        report: Callable[[str], None],
    ) -> None:
        self._config, self._registry, self._report = config, registry, report
        arguments, key = server_arguments(config, str(model_path), dtype), registry.api_key()
        self._places = [
            _Place(slot, sglang_server(slot, config, arguments, log_dir, key, place))
            for place, slot in enumerate(slots)
        ]

    def run(self, ended: Callable[[], bool]) -> None:
        """Keep the servers until ``ended`` or until the registry is closed; then end them.

        Raises:
            EngineError: a server does not start, dies more often than ``max_restarts``, or another machine
                has taken its slot. All servers are ended then, and their entries say so.
        """
        try:
            for place in self._places:
                place.server.start()
            while not (ended() or self._registry.is_closed):
                for place in self._places:
                    self._look_after(place)
                time.sleep(_POLL_S)
        finally:
            self._end()

    def _look_after(self, place: _Place) -> None:
        if place.entry is None or place.watch is None:
            if place.server.is_ready():
                self._register(place)
        elif place.watch.condition is not Condition.HEALTHY:
            self._restart(place, place.entry, place.watch.condition)
        elif time.monotonic() - place.looked_at >= _LOOK_EVERY_S:
            place.looked_at = time.monotonic()
            self._check_entry(place.slot, place.entry)

    def _register(self, place: _Place) -> None:
        endpoint = place.server.endpoint
        place.entry = Entry(
            slot=place.slot,
            url=endpoint.url,
            incarnation=new_incarnation(),
            state="serving",
            host=socket.gethostname(),
            pid=place.server.pid or 0,
            job=platform.job_name(),
            started=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        )
        place.watch = ServerWatch(endpoint, place.server.is_alive, self._config.hang_timeout_s)
        place.watch.start()
        self._registry.write(place.entry)
        self._report(f"SGLang server {place.slot} serves at {endpoint.url}")

    def _restart(self, place: _Place, entry: Entry, condition: Condition) -> None:
        self._leave(place)
        if place.restarts >= self._config.max_restarts:
            raise place.server.error(
                f"is {condition.value} after {place.restarts} restarts (sglang.max_restarts)"
            )
        place.restarts += 1
        self._report(f"SGLang server {place.slot} at {entry.url} is {condition.value}; starting it again")
        place.server.stop()
        place.server.start()

    def _check_entry(self, slot: int, entry: Entry) -> None:
        """See who is in the slot: whoever took this machine for lost may have emptied or filled it."""
        found = self._registry.entry(slot)
        if found is None or (found.incarnation != entry.incarnation and found.state == "lost"):
            self._registry.write(entry)
        elif found.incarnation != entry.incarnation:
            raise EngineError(
                f"slot {slot} of the registry {self._registry.folder} was taken over by {found.url} on "
                f"{found.host}; the server here is ended"
            )

    def _leave(self, place: _Place) -> None:
        """Stop watching, and mark the entry lost if it is still this server's."""
        if place.watch is not None:
            place.watch.stop()
        if place.entry is not None:
            entry, place.entry, place.watch = place.entry, None, None
            self._registry.mark_lost(entry.slot, entry.incarnation)

    def _end(self) -> None:
        with ThreadPoolExecutor(len(self._places)) as pool:
            for place in self._places:
                # Servers must end also where the shared file system does not take a last word.
                with suppress(EngineError):
                    self._leave(place)
            for done in [pool.submit(place.server.stop) for place in self._places]:
                done.result()
