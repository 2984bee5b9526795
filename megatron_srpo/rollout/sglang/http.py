"""HTTP to SGLang servers: one connection pool on an event loop in a thread of its own.

Whatever a server does wrong becomes one of two errors. :class:`ServerFailure`: it did not answer, or not in
a usable way; the same request may succeed later or elsewhere. :class:`RequestRefused`: it answered that the
request itself is wrong, so that repeating it is useless.
"""

import asyncio
import concurrent.futures
import json
import random
import threading
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp

from megatron_srpo.errors import EngineError
from megatron_srpo.rollout.sglang.endpoint import Endpoint

#: Characters of a reply that an error message shows.
SHOWN = 300

_CONNECT_TIMEOUT_S = 10.0
#: Shorter than a server's own (5 s): a connection that the server is just closing would otherwise be used for
#: a weight update, which must not be repeated.
_KEEPALIVE_S = 2.0
#: Statuses below 500 that speak of the server's state, not of the request.
_PASSING = frozenset({408, 425, 429})

_T = TypeVar("_T")


class ServerFailure(EngineError):
    """No usable answer: refused or lost connection, time-out, status 5xx, truncated or meaningless body."""


class RequestRefused(EngineError):
    """The server refused this request (4xx); it would refuse it again.

    Attributes:
        status: HTTP status.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Retries:
    """How often and how fast something that is safe to repeat is repeated.

    Attributes:
        attempts: most tries, the first included.
        first_delay_s: pause before the second try; doubles with every further one.
        longest_delay_s: bound of the pause.
    """

    attempts: int = 4
    first_delay_s: float = 0.25
    longest_delay_s: float = 8.0

    def delay(self, failures: int) -> float:
        """Return the pause after so many failures: between half and the whole of the exponential bound.

        The jitter keeps hundreds of requests that one server lost together from returning together.
        """
        if failures < 1:
            return 0.0
        # The exponent is bounded because 2.0 ** 1024 overflows.
        bound = min(self.longest_delay_s, self.first_delay_s * 2.0 ** min(failures - 1, 64))
        return bound * random.uniform(0.5, 1.0)  # of no consequence to the run: its samples have seeds


class EventLoopThread:
    """An event loop in a daemon thread, and the connection pool that lives on it.

    Attributes:
        http: the pool; its coroutines run here, through :meth:`submit`.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sglang-client", daemon=True)
        self._thread.start()
        self.http = HttpClient()

    def submit(self, coroutine: Coroutine[Any, Any, _T]) -> concurrent.futures.Future[_T]:
        """Run a coroutine on the loop; its result, error and cancellation pass through the future.

        Raises:
            EngineError: the loop is closed.
        """
        if self._loop.is_closed():
            coroutine.close()
            raise EngineError("the SGLang client is closed; make a new engine")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def call(self, function: Callable[..., object], *args: Any) -> None:
        """Call a function on the loop's thread soon; nothing happens once it is closed."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *args)

    def close(self) -> None:
        """Cancel what runs, close the connections and end the thread. Idempotent."""
        if self._loop.is_closed():
            return
        self.submit(self._wind_up()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _wind_up(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self.http.close()


class HttpClient:
    """One connection pool. How many requests run at once is the caller's to bound."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def request(
        self,
        method: str,
        endpoint: Endpoint,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        timeout_s: float,
    ) -> str:
        """Make one call, without repeating it, and return the body of a 200.

        Raises:
            ServerFailure, RequestRefused: naming server, path, status and the beginning of the reply.
        """
        limits = aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(_CONNECT_TIMEOUT_S, timeout_s))
        headers = {"Authorization": f"Bearer {endpoint.api_key}"} if endpoint.api_key else {}
        where = f"{method} {endpoint.url}{path}"
        try:
            async with self._opened().request(
                method,
                endpoint.url + path,
                json=body,
                headers=headers,
                timeout=limits,
                allow_redirects=False,
            ) as reply:
                status, text = reply.status, await reply.text(errors="replace")
        except TimeoutError as error:
            raise ServerFailure(f"{where}: no answer within {timeout_s:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ServerFailure(f"{where}: {type(error).__name__}: {error}") from error
        _check_status(where, status, text)
        return text

    async def request_json(
        self,
        method: str,
        endpoint: Endpoint,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        timeout_s: float,
    ) -> dict[str, Any]:
        """Make one call whose answer is a JSON object.

        Raises:
            ServerFailure, RequestRefused: as :meth:`request`; also a body that is not a JSON object, or one
                that says ``"success": false``.
        """
        text = await self.request(method, endpoint, path, body, timeout_s=timeout_s)
        where = f"{method} {endpoint.url}{path}"
        try:
            parsed = json.loads(text)
        except ValueError as error:
            raise ServerFailure(f"{where}: status 200, but not JSON ({error}): {_shown(text)}") from error
        if not isinstance(parsed, dict):
            raise ServerFailure(f"{where}: status 200, but not a JSON object: {_shown(text)}")
        if parsed.get("success") is False:
            raise ServerFailure(f"{where}: status 200, but success is false: {_shown(text)}")
        return parsed

    async def get_json(
        self, endpoint: Endpoint, path: str, *, timeout_s: float, retries: Retries
    ) -> dict[str, Any]:
        """GET a JSON object, repeating what failed: reading changes nothing on the server.

        Raises:
            ServerFailure, RequestRefused: of the last try.
        """
        for failures in range(1, retries.attempts):
            try:
                return await self.request_json("GET", endpoint, path, timeout_s=timeout_s)
            except ServerFailure:
                await asyncio.sleep(retries.delay(failures))
        return await self.request_json("GET", endpoint, path, timeout_s=timeout_s)

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _opened(self) -> aiohttp.ClientSession:
        """Open the pool on first use: aiohttp binds it to the loop that runs at that moment."""
        if self._session is None:
            # No limit here: a pause must not queue behind hundreds of long /generate calls.
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_S)
            self._session = aiohttp.ClientSession(connector=connector)
        return self._session


def _check_status(where: str, status: int, text: str) -> None:
    if status == 200:
        return
    message = f"{where}: status {status}: {_shown(text)}"
    if status in (401, 403):
        raise RequestRefused(
            f"{message}\nThe API key was refused: put the server's own (its --api-key) into the file that "
            "sglang.api_key_file names",
            status,
        )
    if 400 <= status < 500 and status not in _PASSING:
        raise RequestRefused(message, status)
    raise ServerFailure(message)


def _shown(text: str) -> str:
    return repr(text[:SHOWN]) if text else "(empty reply)"
