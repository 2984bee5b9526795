"""All SGLang servers of a run: started here and watched, or external ones."""

import logging
import secrets
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from megatron_srpo.config.sglang import SGLangConfig
from megatron_srpo.errors import EngineError
from megatron_srpo.rollout.sglang import router as routing
from megatron_srpo.rollout.sglang.endpoint import Endpoint
from megatron_srpo.rollout.sglang.external import reach, read_api_key
from megatron_srpo.rollout.sglang.options import server_arguments
from megatron_srpo.rollout.sglang.process import HttpProcess, sglang_server
from megatron_srpo.rollout.sglang.router import Router
from megatron_srpo.rollout.sglang.routes import Routes
from megatron_srpo.rollout.sglang.watch import Condition, ServerWatch

_POLL_S = 0.25

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Revival:
    """What became of servers that were lost.

    Attributes:
        endpoints: all servers that there are now, in order.
        changed: some of them were started anew or came in, or others were given up.
        given_up: some were given up, so the failure of a call that included them need not come again.
    """

    endpoints: tuple[Endpoint, ...]
    changed: bool
    given_up: bool = False


class Fleet:
    """Starts, watches, restarts and stops the servers. A context manager; not to be shared between threads
    (but for methods that say otherwise).

    Args:
        config: how many servers, or the URLs of external ones.
        model_path: folder from which servers load their first weights.
        dtype: the model's type, for ``config.dtype = "auto"``.
        log_dir: folder of the servers' logs.
        on_progress: is given lines like "SGLang: 1 of 2 servers ready after 31 s".

    Attributes:
        report: ``on_progress``, for others who have something to say about the servers.
    """

    def __init__(
        self,
        config: SGLangConfig,
        model_path: str | Path,
        dtype: str,
        log_dir: Path,
        *,
        on_progress: Callable[[str], None] = _log.info,
    ) -> None:
        self._config = config
        self._model_path, self._dtype = str(model_path), dtype
        self._log_dir = log_dir
        self.report = on_progress
        self._api_key = ""
        self._servers: list[HttpProcess] = []
        self._external: tuple[Endpoint, ...] = ()
        self._watches: list[ServerWatch] = []
        self._routes = Routes(None, config.max_restarts, on_progress)
        self._lost: dict[int, Condition] = {}
        self._restarts: list[int] = []

    def __enter__(self) -> "Fleet":
        with ExitStack() as undo:
            undo.callback(self.close)
            self.start()
            undo.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """The servers themselves, which weights are sent to; by index. A restart may change a port."""
        return self._external or tuple(server.endpoint for server in self._servers)

    @property
    def generation(self) -> tuple[Endpoint, ...]:
        """Where requests go: the router alone where there is one, otherwise the servers."""
        return self._routes.front or self.endpoints

    def start(self) -> None:
        """Start all servers side by side and wait until they serve; or reach the external ones.

        Raises:
            EngineError: SGLang refuses an option, a server does not start, or an external one is not reached.
        """
        if self._config.urls:
            self._external = self._reach_all()
        else:
            self._start_servers()
        self._restarts = [0] * len(self.endpoints)
        self._watches = [self._watch(index) for index in range(len(self.endpoints))]
        if self._wants_router():
            router = Router(self._config, self._log_dir, self._api_key)
            self._routes = Routes(router, self._config.max_restarts, self.report)
            self._routes.start(self.endpoints)

    def note_progress(self, url: str) -> None:
        """Take note that a request to ``url`` finished. Any thread may call it.

        Of the router's URL nothing can be concluded.
        """
        for watch in tuple(self._watches):
            if watch.endpoint.url == url:
                watch.note_progress()

    def conditions(self) -> tuple[Condition, ...]:
        """Say of each server what is known of it. Returns at once."""
        return tuple(watch.condition for watch in self._watches)

    def known(self) -> dict[str, Condition]:
        """Say the same by URL. Any thread may call it."""
        return {watch.endpoint.url: watch.condition for watch in tuple(self._watches)}

    def lost(self) -> tuple[int, ...]:
        """Return the indexes of servers that are dead or frozen; the router stops sending requests to them.

        One that was lost stays so until it is restarted, even if it moves again: it may have missed a weight
        update. A router that has died is started again.

        Raises:
            EngineError: the router has died more often than ``max_restarts``.
        """
        for index, condition in enumerate(self.conditions()):
            if condition is not Condition.HEALTHY:
                self._lost.setdefault(index, condition)
        self._routes.take_out({self.endpoints[index].url for index in self._lost})
        return tuple(sorted(self._lost))

    def revive(self, silent: Collection[str], admit: bool = True) -> Revival:
        """Restart what is lost; the router does not use it before :meth:`settle`.

        Args:
            silent: URLs of servers that do not answer, whatever else is known of them.
            admit: of no meaning here: nobody else comes.

        Raises:
            EngineError: as :meth:`restart` and :meth:`lost`.
        """
        lost = set(self.lost())
        lost |= {index for index, endpoint in enumerate(self.endpoints) if endpoint.url in silent}
        for index in sorted(lost):
            self.restart(index, put_back=False)
        return Revival(self.endpoints, bool(lost))

    def settle(self) -> None:
        """Let the router use all servers, which by now have the current weights.

        Raises:
            EngineError: the router does not accept a server.
        """
        for index in range(len(self.endpoints)):
            self.put_back(index)

    def take_out(self, url: str) -> None:
        """Let the router send nothing there until :meth:`settle`. Any thread may call it.

        Raises:
            EngineError: the router does not answer.
        """
        self._routes.take_out({url})

    def restart(self, index: int, put_back: bool = True) -> Endpoint:
        """Kill what is left of a server and start it anew, on its old port where that is free.

        It comes up with the weights of ``model_path``. With ``put_back=False`` the router does not send
        requests to it until :meth:`put_back`, so that it can be given the current weights first.

        Returns:
            Its endpoint, which may be a new one.

        Raises:
            EngineError: it was restarted ``max_restarts`` times already, does not start, or is external.
        """
        condition = self._lost.get(index, self.conditions()[index]).value
        if self._external:
            raise EngineError(
                f"the external SGLang server {self._external[index].url} is {condition}; it was not started "
                "here and so is not restarted: start it again, and resume the run"
            )
        server = self._servers[index]
        if self._restarts[index] >= self._config.max_restarts:
            raise server.error(f"is {condition} after {self._restarts[index]} restarts (sglang.max_restarts)")
        self._restarts[index] += 1
        self._watches[index].stop()
        self._routes.take_out({self.endpoints[index].url})
        began = time.monotonic()
        server.stop()
        server.start()
        server.wait_ready()
        self._watches[index] = self._watch(index)
        self._lost.pop(index, None)
        self.report(f"SGLang server {index} was {condition}; restarted in {time.monotonic() - began:.0f} s")
        if put_back:
            self.put_back(index)
        return server.endpoint

    def put_back(self, index: int) -> None:
        """Let the router send requests to a restarted server. Without a router there is nothing to do.

        Raises:
            EngineError: the router does not accept it.
        """
        self._routes.put_in(self.endpoints[index])

    def close(self) -> None:
        """End the router and all servers that were started here. Idempotent."""
        for watch in self._watches:
            watch.stop()
        stops: list[Callable[[], None]] = [self._routes.stop, *(server.stop for server in self._servers)]
        with ThreadPoolExecutor(len(stops)) as pool:
            for done in [pool.submit(stop) for stop in stops]:
                done.result()

    def _start_servers(self) -> None:
        arguments = server_arguments(self._config, self._model_path, self._dtype)
        # A new key each run: servers listen on a port that others on this machine can reach.
        self._api_key = secrets.token_urlsafe(32)
        self._servers = [
            sglang_server(index, self._config, arguments, self._log_dir, self._api_key)
            for index in range(self._config.servers)
        ]
        began = time.monotonic()
        for server in self._servers:
            server.start()
        self._wait_ready(began)

    def _wait_ready(self, began: float) -> None:
        """Wait for all; the first that fails ends the waiting."""
        ready: list[HttpProcess] = []
        told = -1
        while len(ready) < len(self._servers):
            ready += [server for server in self._servers if server not in ready and server.is_ready()]
            if told < len(ready):
                told = len(ready)
                seconds = time.monotonic() - began
                self.report(f"SGLang: {told} of {len(self._servers)} servers ready after {seconds:.0f} s")
            time.sleep(_POLL_S)

    def _reach_all(self) -> tuple[Endpoint, ...]:
        key = read_api_key(self._config.api_key_file)
        endpoints = tuple(Endpoint(url, self._config.tensor_parallel, key) for url in self._config.urls)
        for endpoint in endpoints:
            reach(endpoint)
        return endpoints

    def _wants_router(self) -> bool:
        if self._external or self._config.router == "off":
            return False
        return self._config.router == "on" or (len(self._servers) > 1 and routing.is_installed())

    def _watch(self, index: int) -> ServerWatch:
        is_alive = None if self._external else self._servers[index].is_alive
        watch = ServerWatch(self.endpoints[index], is_alive, self._config.hang_timeout_s)
        watch.start()
        return watch
