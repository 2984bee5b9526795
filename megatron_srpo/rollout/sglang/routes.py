"""Which servers a fleet's router sends requests to, if the fleet has one."""

import threading
from collections.abc import Callable, Collection, Sequence

from megatron_srpo.rollout.sglang.endpoint import Endpoint
from megatron_srpo.rollout.sglang.router import Router


class Routes:
    """Keeps the router alive and its list of servers right. Without a router, nothing is to be done.

    Any thread may call it.

    Args:
        max_restarts: restarts of a router that has died.
        report: is given a line for each.
    """

    def __init__(self, router: Router | None, max_restarts: int, report: Callable[[str], None]) -> None:
        self.router = router
        self._max_restarts, self._report = max_restarts, report
        self._routed: dict[str, Endpoint] = {}
        self._restarts = 0
        self._lock = threading.Lock()

    @property
    def front(self) -> tuple[Endpoint, ...]:
        """The router; empty without one."""
        return () if self.router is None else (self.router.endpoint,)

    def start(self, servers: Sequence[Endpoint]) -> None:
        """Start the router before these servers.

        Raises:
            EngineError: it does not start, or does not accept a server.
        """
        if self.router is not None:
            self.router.start(servers)
            self._routed = {server.url: server for server in servers}

    def take_out(self, urls: Collection[str]) -> None:
        """Send nothing to these any more. A router that has died is started again.

        Raises:
            EngineError: it has died more often than it may, or does not answer.
        """
        if self.router is None:
            return
        with self._lock:
            gone = [url for url in urls if self._routed.pop(url, None)]
            if not self.router.is_alive():
                self._mend(self.router)
                return
            for url in gone:
                self.router.remove(url)

    def put_in(self, server: Endpoint) -> None:
        """Send requests to this server, too.

        Raises:
            EngineError: the router does not accept it.
        """
        if self.router is None:
            return
        with self._lock:
            if server.url not in self._routed:
                self.router.add(server)
                self._routed[server.url] = server

    def stop(self) -> None:
        """End the router. Idempotent."""
        if self.router is not None:
            self.router.stop()

    def _mend(self, router: Router) -> None:
        if self._restarts >= self._max_restarts:
            raise router.error(f"is dead after {self._restarts} restarts (sglang.max_restarts)")
        self._restarts += 1
        self._report("SGLang's router has died; starting it again")
        router.start(tuple(self._routed.values()))
