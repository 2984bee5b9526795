"""Takes servers that are lost out of rotation while requests wait for them."""

import contextlib
import threading
from collections.abc import Callable, Mapping

from megatron_srpo.errors import EngineError
from megatron_srpo.rollout.sglang.engine import SGLangEngine
from megatron_srpo.rollout.sglang.watch import Condition

_INTERVAL_S = 1.0


class Guard:
    """Watches over one engine from a thread of its own.

    A server that froze keeps its connections: without a guard, requests would wait for it until they time
    out, an hour later. A server that is heard of again is put back.

    Args:
        conditions: what is known of each server, by url.
        on_lost: is told the url of each that is lost, before its requests are sent elsewhere.
    """

    def __init__(
        self,
        engine: SGLangEngine,
        conditions: Callable[[], Mapping[str, Condition]],
        on_lost: Callable[[str], None] | None = None,
    ) -> None:
        self._engine, self._conditions, self._on_lost = engine, conditions, on_lost
        self._out: dict[str, Condition] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sglang guard", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        self._stop.set()

    def check(self) -> None:
        """Compare what is known with what was done. Called by the thread; by tests directly."""
        known = {server.name for server in self._engine.servers}
        for url, condition in self._conditions().items():
            lost, news = condition is not Condition.HEALTHY, self._out.get(url) is not condition
            # Meanwhile the engine may have given the server up, and then refuses.
            with contextlib.suppress(EngineError):
                if url in known and lost and news:
                    self._tell(url)
                    self._engine.exclude(url, gone=condition is Condition.DEAD)
                elif url in known and not lost and url in self._out:
                    self._engine.include(url)
            if lost:
                self._out[url] = condition
            else:
                self._out.pop(url, None)

    def _tell(self, url: str) -> None:
        if self._on_lost is not None:
            # What a router refuses now is met again, and raised, when servers are revived.
            with contextlib.suppress(EngineError):
                self._on_lost(url)

    def _run(self) -> None:
        while not self._stop.wait(_INTERVAL_S):
            self.check()
