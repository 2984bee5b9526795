"""Is a server dead, frozen, or merely busy?

Asking a busy engine too often or killing it for being slow costs more than waiting. So a server counts as
frozen only when nothing at all was heard for ``hang_timeout_s``: neither an answer that took a turn of its
scheduler, nor a movement of its counters, nor a finished request reported by the client.
"""

import enum
import threading
import time
from collections.abc import Callable
from typing import Any

from megatron_srpo.rollout.sglang.endpoint import Endpoint
from megatron_srpo.rollout.sglang.process import Reply, fetch

#: The answer needs one turn of the scheduler, but no computation on the model (unlike /health).
_ALIVE_PATH = "/server_info"
#: Answered by the front process alone, from what the scheduler last published.
_COUNTERS_PATH = "/v1/loads?include=core"
#: One refused connection may be an accident of a full queue.
_REFUSALS = 3
#: Unanswered probes without which no server is called frozen: the trainer itself may have been suspended.
_UNANSWERED = 3
_INTERVAL_S = 5.0
_TIMEOUT_S = 10.0

Fetch = Callable[[Endpoint, str, float], Reply | OSError]


class Condition(enum.Enum):
    """What is known of a server."""

    HEALTHY = "healthy"
    DEAD = "dead"
    FROZEN = "frozen"


class ServerWatch:
    """Watches one server from a thread of its own. Use as a context manager, or call start and stop.

    Args:
        endpoint: the server.
        is_alive: says whether its process runs; None when it was started elsewhere.
        hang_timeout_s: silence after which it counts as frozen. Must exceed the longest pause that is no
            fault: a weight update, or the prefill of the longest batch.
        clock, fetch: replaced in tests.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        is_alive: Callable[[], bool] | None = None,
        hang_timeout_s: float = 300.0,
        *,
        clock: Callable[[], float] = time.monotonic,
        fetch: Fetch = fetch,
    ) -> None:
        self.endpoint = endpoint
        self._is_alive, self._hang_timeout_s = is_alive, hang_timeout_s
        self._clock, self._fetch = clock, fetch
        self._lock = threading.Lock()
        self._heard_at = clock()
        self._refusals = self._unanswered = 0
        self._frozen = False
        self._counters: Any = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"watch {endpoint.url}", daemon=True)

    def __enter__(self) -> "ServerWatch":
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @property
    def condition(self) -> Condition:
        """What is known now. Returns at once; that a process has ended is seen without a probe."""
        if self._is_alive is not None and not self._is_alive():
            return Condition.DEAD
        with self._lock:
            if self._refusals >= _REFUSALS:
                return Condition.DEAD
            return Condition.FROZEN if self._frozen else Condition.HEALTHY

    @property
    def silent_s(self) -> float:
        """Seconds since the last sign of life."""
        with self._lock:
            return self._clock() - self._heard_at

    def start(self) -> None:
        """Begin to probe in the background."""
        self.note_progress()
        self._thread.start()

    def stop(self) -> None:
        """Stop probing; a probe under way is not waited for."""
        self._stop.set()

    def note_progress(self) -> None:
        """Take note that the server finished a request: a sign of life, whatever the probes say."""
        with self._lock:
            self._heard_at = self._clock()
            self._refusals = self._unanswered = 0
            self._frozen = False

    def check(self) -> None:
        """Probe once. Called by the thread; by tests directly."""
        timeout_s = min(_TIMEOUT_S, self._hang_timeout_s / _UNANSWERED)
        reply = self._fetch(self.endpoint, _ALIVE_PATH, timeout_s)
        # 401 and 404 are answers too: of a server with another key or of another version.
        if isinstance(reply, Reply) and reply.status < 500:
            self.note_progress()
        elif isinstance(reply, ConnectionRefusedError):
            self._note_silence(refused=True)
        elif self._counters_moved(timeout_s):
            self.note_progress()
        else:
            self._note_silence(refused=False)

    def _run(self) -> None:
        while not self._stop.wait(min(_INTERVAL_S, self._hang_timeout_s / (2 * _UNANSWERED))):
            self.check()

    def _counters_moved(self, timeout_s: float) -> bool:
        reply = self._fetch(self.endpoint, _COUNTERS_PATH, timeout_s)
        answer = reply.json() if isinstance(reply, Reply) and reply.status == 200 else None
        if not isinstance(answer, dict):
            return False
        # The rest of the answer, its own time among it, changes whether the scheduler lives or not.
        before, self._counters = self._counters, answer.get("loads")
        return before is not None and before != self._counters

    def _note_silence(self, refused: bool) -> None:
        with self._lock:
            self._refusals = self._refusals + 1 if refused else 0
            self._unanswered += 1
            silent_s = self._clock() - self._heard_at
            self._frozen = self._unanswered >= _UNANSWERED and silent_s >= self._hang_timeout_s
