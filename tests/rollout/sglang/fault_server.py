"""A stand-in for an SGLang server that misbehaves on command, and counts what it did.

It speaks the part of the HTTP interface that the client uses. Its "model" draws token ids from a hash of
prompt, seed and place, so that what a response must be is known without it (:func:`expected_tokens`).
"""

import asyncio
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from megatron_srpo.rollout.sglang.endpoint import Endpoint

VOCABULARY = 50
EOS = 7

#: What can go wrong with one /generate call: a name below, or a function that falsifies the reply.
Fault = str | Callable[[dict[str, Any]], None]


def draw(prompt: Sequence[int], seed: int, place: int) -> int:
    """Token ``place`` of the response, hashed from the prompt, the seed and its place in the sequence."""
    text = json.dumps([list(prompt), seed, place])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") % VOCABULARY


def expected_tokens(prompt: Sequence[int], seed: int, most: int, stops: Sequence[int] = (EOS,)) -> list[int]:
    """The response of a server at which nothing goes wrong."""
    tokens: list[int] = []
    while len(tokens) < most and not (tokens and tokens[-1] in stops):
        tokens.append(draw(prompt[:2], seed, len(prompt) + len(tokens)))
    return tokens


def expected_log_prob(token: int) -> float:
    """Log-prob that the stand-in reports."""
    return -(token + 1) / 64


class FaultServer:
    """Serves in a thread of its own, from ``with`` to its end.

    Attributes:
        faults: taken from the front, one per /generate call; then ``always``, if set.
        bodies: of all /generate calls, in order.
        counts: how often each fault happened, and each other path was called.
        paths, controls: of all calls but /generate and /abort_request, with their bodies.
        running: request ids that are being answered now.
        token_s: time that a token takes.
        version: weight version that replies carry.
    """

    def __init__(
        self,
        faults: Sequence[Fault] = (),
        always: Fault | None = None,
        api_key: str | None = None,
        token_s: float = 0.0,
        version: str = "default",
    ) -> None:
        self.faults, self.always = list(faults), always
        self.api_key, self.token_s, self.version = api_key, token_s, version
        self.bodies: list[dict[str, Any]] = []
        self.counts: Counter[str] = Counter()
        self.running: set[str] = set()
        self.paths: list[str] = []
        self.controls: list[Any] = []
        self._aborted: set[str] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._port = 0

    @property
    def endpoint(self) -> Endpoint:
        """Where it listens, with the right key."""
        return Endpoint(f"http://127.0.0.1:{self._port}", 1, self.api_key)

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def stop(self) -> None:
        """Close the port and all connections, as a kill does."""
        self._run(self._stop())

    def restart(self) -> None:
        """Listen again on the same port."""
        self._run(self._start())

    def _run(self, coroutine: Any) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout=20)

    async def _start(self) -> None:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/generate", self._generate)
        app.router.add_post("/abort_request", self._abort)
        app.router.add_route("*", "/{path:.*}", self._other)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def _stop(self) -> None:
        """Close the port, then cut the connections: a clean shutdown would wait for answers."""
        for site in list(self._runner.sites):
            await site.stop()
        for connection in list(self._runner.server.connections if self._runner.server else ()):
            if connection.transport is not None:
                connection.transport.abort()
        await asyncio.sleep(0)
        await self._runner.cleanup()

    def _refusal(self, request: web.Request) -> web.Response | None:
        if self.api_key and request.headers.get("Authorization") != f"Bearer {self.api_key}":
            self.counts["wrong key"] += 1
            return web.json_response({"error": "Unauthorized"}, status=401)
        return None

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        refusal = self._refusal(request)
        if refusal:
            return refusal
        body = await request.json()
        self.bodies.append(body)
        fault = self.faults.pop(0) if self.faults else self.always
        if body["sampling_params"]["max_new_tokens"] == 0:
            self.counts["prime"] += 1
        if fault is not None:
            self.counts[fault if isinstance(fault, str) else "lie"] += 1
        self.running.add(body["rid"])
        try:
            return await self._answer(request, body, fault)
        finally:
            self.running.discard(body["rid"])

    async def _answer(
        self, request: web.Request, body: dict[str, Any], fault: Fault | None
    ) -> web.StreamResponse:
        if isinstance(fault, str) and fault.isdigit():
            return web.json_response({"error": {"message": f"fault {fault}"}}, status=int(fault))
        if fault == "abort":
            self._aborted.add(body["rid"])
        if fault == "hang":
            await asyncio.sleep(3600)
        reply = await self._reply(body)
        if callable(fault):
            fault(reply)
        text = json.dumps(reply)
        if fault == "not json":
            text = "<html>gateway</html>"
        if fault == "truncated":
            text = text[: len(text) // 2]
        if fault == "reset":
            return await self._reset(request, text)
        return web.Response(text=text, content_type="application/json")

    async def _reset(self, request: web.Request, text: str) -> web.StreamResponse:
        """Promise the whole reply, send half of it, and cut the connection."""
        response = web.StreamResponse(headers={"Content-Length": str(len(text))})
        await response.prepare(request)
        await response.write(text[: len(text) // 2].encode())
        if request.transport is not None:
            request.transport.abort()
        return response

    async def _reply(self, body: dict[str, Any]) -> dict[str, Any]:
        params, prompt = body["sampling_params"], body["input_ids"]
        stops, version = params.get("stop_token_ids", []), self.version
        tokens: list[int] = []
        reason: dict[str, Any] = {"type": "length", "length": params["max_new_tokens"]}
        while len(tokens) < params["max_new_tokens"]:
            await asyncio.sleep(self.token_s)
            if body["rid"] in self._aborted:
                reason = {"type": "abort", "message": "Aborted"}
                break
            tokens.append(self._next(prompt, tokens, params))
            if tokens[-1] in stops:
                reason = {"type": "stop", "matched": tokens[-1]}
                break
        return {
            "text": "never read",
            "output_ids": tokens,
            "meta_info": {
                "id": body["rid"],
                "finish_reason": reason,
                "output_token_logprobs": [[expected_log_prob(token), token, None] for token in tokens],
                "completion_tokens": len(tokens),
                "weight_version": version,
                "weight_versions": [{"version": version, "start": 0, "end": len(tokens)}],
            },
        }

    def _next(self, prompt: list[int], tokens: list[int], params: dict[str, Any]) -> int:
        """Draw from the place in the sequence, as SGLang does; a logit bias forbids."""
        forbidden = {int(token) for token in params.get("logit_bias", {})}
        seed, token = params["sampling_seed"], -1
        while token < 0 or token in forbidden:
            token = draw(prompt[:2], seed, len(prompt) + len(tokens))
            seed += 1
        return token

    async def _abort(self, request: web.Request) -> web.Response:
        rid = (await request.json())["rid"]
        self.counts["/abort_request"] += 1
        # SGLang aborts by prefix.
        self._aborted.update(name for name in self.running if name.startswith(rid))
        return web.Response()

    async def _other(self, request: web.Request) -> web.Response:
        refusal = self._refusal(request)
        if refusal:
            return refusal
        self.counts[request.path] += 1
        self.paths.append(request.path_qs)
        self.controls.append(await request.json() if request.can_read_body else None)
        fault = self.faults.pop(0) if self.faults else self.always
        if isinstance(fault, str) and fault.isdigit():
            return web.Response(text=f"fault {fault}", status=int(fault))
        reply: dict[str, Any] = {"success": True, "weight_version": self.version}
        if callable(fault):
            fault(reply)
        return web.json_response(reply)
