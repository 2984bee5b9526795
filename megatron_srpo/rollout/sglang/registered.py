"""Servers that others start on other machines, that may be lost and come back elsewhere."""

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from megatron_srpo.config.sglang import SGLangConfig
from megatron_srpo.errors import EngineError
from megatron_srpo.rollout.sglang.endpoint import Endpoint
from megatron_srpo.rollout.sglang.fleet import Revival
from megatron_srpo.rollout.sglang.lookout import Lookout
from megatron_srpo.rollout.sglang.process import Reply, fetch
from megatron_srpo.rollout.sglang.registry import Entry, Registry
from megatron_srpo.rollout.sglang.router import Router
from megatron_srpo.rollout.sglang.routes import Routes
from megatron_srpo.rollout.sglang.watch import Condition

_POLL_S = 1.0
_PROBE_S = 5.0
_SAY_EVERY_S = 30.0

_log = logging.getLogger(__name__)


def _never() -> bool:
    return False


class RegisteredFleet:
    """The servers of a :class:`~megatron_srpo.rollout.sglang.registry.Registry` that a run uses.

    A context manager; not to be shared between threads (but for methods that say otherwise). Servers are
    neither started nor ended here. Those that are lost are given up at once, newcomers taken in by
    :meth:`revive`: whoever calls it then gives them the current weights.

    Args:
        config: with ``registry``.
        log_dir: folder of the router's log.
        on_progress: is given lines like "SGLang: 3 of 4 servers registered after 40 s".
        should_stop: ends waiting for servers when it says so.

    Attributes:
        report: ``on_progress``, for others who have something to say about the servers.
    """

    def __init__(
        self,
        config: SGLangConfig,
        log_dir: Path,
        *,
        on_progress: Callable[[str], None] = _log.info,
        should_stop: Callable[[], bool] = _never,
    ) -> None:
        self._config, self._log_dir, self._should_stop = config, log_dir, should_stop
        self.report = on_progress
        self._registry = Registry(config.registry, on_progress)
        self._members: dict[int, Endpoint] = {}
        self._lookout = Lookout((), config.hang_timeout_s)
        self._routes = Routes(None, config.max_restarts, on_progress)
        self._mute: set[str] = set()

    def __enter__(self) -> "RegisteredFleet":
        with ExitStack() as undo:
            undo.callback(self.close)
            self.start()
            undo.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """The servers themselves, which weights are sent to; in the order of their slots."""
        return tuple(endpoint for _, endpoint in sorted(self._members.items()))

    @property
    def generation(self) -> tuple[Endpoint, ...]:
        """Where requests go: the router alone where there is one, otherwise the servers."""
        return self._routes.front or self.endpoints

    def start(self) -> None:
        """Wait until a server serves in every slot, at most ``start_timeout_s``, and at least in one.

        Raises:
            EngineError: none serves in time, or the run is asked to stop.
        """
        self._use(self._gather())
        if self._config.router == "on":
            router = Router(self._config, self._log_dir, self._registry.api_key())
            self._routes = Routes(router, self._config.max_restarts, self.report)
            self._routes.start(self.endpoints)

    def note_progress(self, url: str) -> None:
        """Take note that a request to ``url`` finished. Any thread may call it."""
        self._lookout.note_progress(url)

    def known(self) -> dict[str, Condition]:
        """Say of each server, by URL, what is known of it. Any thread may call it."""
        return self._lookout.known()

    def take_out(self, url: str) -> None:
        """Let the router send nothing there until :meth:`settle`. Any thread may call it.

        Raises:
            EngineError: the router does not answer.
        """
        self._routes.take_out({url})

    def revive(self, silent: Collection[str], admit: bool = True) -> Revival:
        """Give up what is lost and take in who has come; with nobody left, wait for someone.

        Args:
            silent: URLs of servers that do not answer, whatever else is known of them.
            admit: take in newcomers even where some servers are left.

        Raises:
            EngineError: nobody came within ``return_timeout_s``, or the run is asked to stop.
        """
        known = self.known()
        before = dict(self._members)
        lost = {
            slot: endpoint
            for slot, endpoint in before.items()
            if endpoint.url in silent or known[endpoint.url] is not Condition.HEALTHY
        }
        members = {slot: endpoint for slot, endpoint in before.items() if slot not in lost}
        for slot, endpoint in lost.items():
            self.report(f"SGLang server {slot} at {endpoint.url} is lost; {self._count(members)} are left")
        self._routes.take_out({endpoint.url for endpoint in lost.values()})
        if admit:
            members |= self._newcomers(members, {endpoint.incarnation for endpoint in lost.values()})
        members = members or self._wait_for_any()
        for slot in sorted(members.keys() - (before.keys() - lost.keys())):
            self.report(
                f"SGLang server {slot} at {members[slot].url} joins; {self._count(members)} servers serve"
            )
        if members != before:
            self._use(members)
        return Revival(self.endpoints, members != before, bool(lost))

    def settle(self) -> None:
        """Let the router use all servers, which by now have the current weights.

        Raises:
            EngineError: the router does not accept a server.
        """
        for endpoint in self.endpoints:
            self._routes.put_in(endpoint)

    def close(self) -> None:
        """Stop watching and end the router; the servers stay. Idempotent."""
        self._lookout.stop()
        self._routes.stop()

    def _use(self, members: dict[int, Endpoint]) -> None:
        self._lookout.stop()
        self._members = members
        self._lookout = Lookout(self.endpoints, self._config.hang_timeout_s, self._registry)

    def _count(self, members: Collection[int]) -> str:
        return f"{len(members)} of {self._config.servers}"

    def _gather(self) -> dict[int, Endpoint]:
        """Wait for servers at the beginning of a run."""
        began, told = time.monotonic(), -1
        members: dict[int, Endpoint] = {}
        while True:
            members = self._newcomers({}, ())
            seconds = time.monotonic() - began
            if told != len(members):
                told = len(members)
                self.report(f"SGLang: {self._count(members)} servers registered after {seconds:.0f} s")
            if told == self._config.servers or (members and seconds >= self._config.start_timeout_s):
                return members
            self._pause(seconds, self._config.start_timeout_s, "start_timeout_s")

    def _wait_for_any(self) -> dict[int, Endpoint]:
        """Wait, with nobody left, for a server to come or to answer again."""
        began = said = time.monotonic()
        self.report("no SGLang server is left; waiting for one to register")
        while not (members := self._newcomers({}, ())):
            seconds = time.monotonic() - began
            if time.monotonic() - said >= _SAY_EVERY_S:
                said = time.monotonic()
                self.report(f"no SGLang server has registered for {seconds:.0f} s")
            self._pause(seconds, self._config.return_timeout_s, "return_timeout_s")
        return members

    def _pause(self, seconds: float, limit_s: float, key: str) -> None:
        if seconds >= limit_s:
            raise EngineError(
                f"no SGLang server has registered in {self._registry.folder} within {limit_s:g} s "
                f"(rollout.sglang.{key}); start some with megatron-srpo serve --register "
                f"{self._registry.folder}, and see their logs"
            )
        if self._should_stop():
            raise EngineError("stop requested while waiting for SGLang servers")
        time.sleep(min(_POLL_S, limit_s))

    def _newcomers(self, members: Mapping[int, Endpoint], unwanted: Collection[str]) -> dict[int, Endpoint]:
        """Return the servers that serve in slots which are not taken, by slot.

        An entry may be older than the run, and its server long gone: only one that answers counts.

        Args:
            unwanted: incarnations that were found lost just now.
        """
        urls = {endpoint.url for endpoint in members.values()}
        entries = [
            entry
            for slot, entry in self._registry.serving().items()
            if slot < self._config.servers and slot not in members and entry.incarnation not in unwanted
        ]
        # Where an old entry names a port that another server has by now, the younger entry is right.
        by_url = {entry.url: entry for entry in sorted(entries, key=lambda entry: entry.started)}
        found = [entry for url, entry in by_url.items() if url not in urls]
        return {entry.slot: endpoint for entry, endpoint in self._probe(found)}

    def _probe(self, entries: list[Entry]) -> Iterable[tuple[Entry, Endpoint]]:
        if not entries:
            return
        key, ranks = self._registry.api_key(), self._config.tensor_parallel
        endpoints = [Endpoint(entry.url, ranks, key, entry.incarnation) for entry in entries]
        with ThreadPoolExecutor(len(endpoints)) as pool:
            answers = list(pool.map(_why_not, endpoints))
        for entry, endpoint, why in zip(entries, endpoints, answers, strict=True):
            if why is None:
                yield entry, endpoint
            elif entry.incarnation not in self._mute:
                self._mute.add(entry.incarnation)
                self.report(f"SGLang server {entry.slot} at {entry.url} is registered, but {why}")


def _why_not(endpoint: Endpoint) -> str | None:
    """Say why a server cannot be used; None if it can. /server_info takes a turn of its scheduler."""
    for path in ("/model_info", "/server_info"):
        reply = fetch(endpoint, path, _PROBE_S)
        if not isinstance(reply, Reply):
            return f"does not answer {path} ({reply})"
        if reply.status != 200:
            return f"answers {path} with status {reply.status}"
    return None
