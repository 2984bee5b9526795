"""All SGLang servers of a run: started here and watched, or external ones."""

import logging
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from megatron_srpo.config.sglang import SGLangConfig
from megatron_srpo.errors import EngineError
from megatron_srpo.rollout.sglang import router as routing
from megatron_srpo.rollout.sglang.endpoint import Endpoint
from megatron_srpo.rollout.sglang.options import server_arguments
from megatron_srpo.rollout.sglang.process import HttpProcess, fetch, sglang_server
from megatron_srpo.rollout.sglang.router import Router
from megatron_srpo.rollout.sglang.watch import Condition, ServerWatch

_POLL_S = 0.25
_REACH_TIMEOUT_S = 30.0

_log = logging.getLogger(__name__)


class Fleet:
    """Starts, watches, restarts and stops the servers. A context manager; not to be shared between threads
    (but for :meth:`note_progress`, which any thread may call).

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
        self._router: Router | None = None
        self._routed: set[int] = set()
        self._lost: dict[int, Condition] = {}
        self._restarts: list[int] = []
        self._router_restarts = 0

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
        return (self._router.endpoint,) if self._router else self.endpoints

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
            self._router = Router(self._config, self._log_dir, self._api_key)
            self._router.start(self.endpoints)
            self._routed = set(range(len(self.endpoints)))

    def note_progress(self, url: str) -> None:
        """Take note that a request to ``url`` finished. Of the router's URL nothing can be concluded."""
        for watch in tuple(self._watches):
            if watch.endpoint.url == url:
                watch.note_progress()

    def conditions(self) -> tuple[Condition, ...]:
        """Say of each server what is known of it. Returns at once."""
        return tuple(watch.condition for watch in self._watches)

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
        if self._router is not None:
            gone = self._routed.intersection(self._lost)
            self._routed -= gone
            if not self._router.is_alive():
                self._mend(self._router)
            else:
                for index in gone:
                    self._router.remove(self.endpoints[index].url)
        return tuple(sorted(self._lost))

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
        self._take_out(index)
        began = time.monotonic()
        server.stop(grace_s=0.0)
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
        if self._router is not None and index not in self._routed:
            self._router.add(self.endpoints[index])
            self._routed.add(index)

    def close(self) -> None:
        """End the router and all servers that were started here. Idempotent."""
        for watch in self._watches:
            watch.stop()
        stops: list[Callable[[], None]] = [server.stop for server in self._servers]
        if self._router is not None:
            stops.append(self._router.stop)
        if stops:
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

    def _take_out(self, index: int) -> None:
        if self._router is not None and index in self._routed:
            self._router.remove(self.endpoints[index].url)
            self._routed.discard(index)

    def _mend(self, router: Router) -> None:
        if self._router_restarts >= self._config.max_restarts:
            raise router.error(f"is dead after {self._router_restarts} restarts (sglang.max_restarts)")
        self._router_restarts += 1
        self.report("SGLang's router has died; starting it again")
        router.start([self.endpoints[index] for index in sorted(self._routed)])


def read_api_key(path: str) -> str | None:
    """Read the key of external servers; None for no file.

    Raises:
        EngineError: the file cannot be read or is empty.
    """
    if not path:
        return None
    try:
        key = Path(path).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise EngineError(f"sglang.api_key_file = {path!r} cannot be read: {error}") from error
    if not key:
        raise EngineError(f"sglang.api_key_file = {path!r} is empty; write the servers' key into it")
    return key


def reach(endpoint: Endpoint) -> None:
    """Make sure that an external server answers and accepts the key.

    Raises:
        EngineError: it does not; the message names its URL.
    """
    reply = fetch(endpoint, "/model_info", _REACH_TIMEOUT_S)
    if isinstance(reply, OSError):
        raise EngineError(
            f"sglang.urls: {endpoint.url} is not reached ({reply}); start that server or correct the URL"
        )
    if reply.status in (401, 403):
        given = (
            "the key given in sglang.api_key_file" if endpoint.api_key else "no key; set sglang.api_key_file"
        )
        raise EngineError(f"sglang.urls: {endpoint.url} refuses {given} (status {reply.status})")
    if reply.status != 200 or not isinstance(reply.json(), dict):
        text = reply.body[:200].decode(errors="replace")
        raise EngineError(
            f"sglang.urls: {endpoint.url} answers /model_info with status {reply.status}: {text!r}; "
            "is it an SGLang server?"
        )
