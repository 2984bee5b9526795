"""A proxy before a real SGLang server that spoils some of its answers, and counts how many."""

import asyncio
import threading
from collections import Counter
from typing import Self

import aiohttp
from aiohttp import web


class FaultyProxy:
    """Passes every call on; of the answers to /generate, spoils some. Serves from ``with`` to its end.

    Attributes:
        every: fault -> spoil every so-manieth answer in this way: "500", "truncated" or "reset".
        counts: by fault, how often it happened; "passed" for the others.
    """

    def __init__(self, target: str, every: dict[str, int]) -> None:
        self.target, self.every = target, every
        self.counts: Counter[str] = Counter()
        self.url = ""
        self._calls = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(30)
        return self

    def __exit__(self, *exception: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    async def _start(self) -> None:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300))
        app = web.Application(client_max_size=1 << 28)
        app.router.add_route("*", "/{path:.*}", self._pass_on)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}"

    async def _stop(self) -> None:
        await self._runner.cleanup()
        await self._session.close()

    def _fault(self, request: web.Request) -> str:
        if request.path != "/generate":
            return "passed"
        self._calls += 1
        return next((fault for fault, every in self.every.items() if self._calls % every == 0), "passed")

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        fault = self._fault(request)
        self.counts[fault] += 1
        if fault == "500":
            return web.Response(status=500, text="out of luck")
        headers = {
            name: value
            for name, value in request.headers.items()
            if name in ("Authorization", "Content-Type")
        }
        async with self._session.request(
            request.method, self.target + str(request.rel_url), data=await request.read(), headers=headers
        ) as answer:
            body = await answer.read()
        if fault == "truncated":
            return web.Response(
                status=answer.status, body=body[: len(body) // 2], content_type="application/json"
            )
        if fault == "reset":
            assert request.transport is not None
            request.transport.abort()
        return web.Response(status=answer.status, body=body, content_type="application/json")
