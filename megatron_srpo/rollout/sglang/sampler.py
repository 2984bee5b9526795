"""Sampling many responses over several SGLang servers. Runs on the client's event loop.

Every response is an HTTP call of its own (why: :meth:`~megatron_srpo.rollout.sglang.draft.Draft.body`), which
is safe to repeat: tokens are a function of weights, prompt and seed. Calls that a server loses are repeated
there or elsewhere; a call that a server refuses raises at once.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from uuid import uuid4

from megatron_srpo.errors import EngineError
from megatron_srpo.rollout.collect import shares
from megatron_srpo.rollout.engine import EngineLost
from megatron_srpo.rollout.sglang.draft import Draft
from megatron_srpo.rollout.sglang.endpoint import Endpoint
from megatron_srpo.rollout.sglang.http import HttpClient, RequestRefused, Retries, ServerFailure
from megatron_srpo.rollout.sglang.replies import BadReply, parse_reply
from megatron_srpo.rollout.sglang.rotation import Rotation, Seat
from megatron_srpo.rollout.types import Completion, Request, SamplingParams
from megatron_srpo.rollout.vocabulary import Vocabulary

#: Prompts shorter than this are not worth a call of their own before their samples.
PRIME_FROM = 32

#: How long an abort may take to come back before it is repeated, and a cancellation before it is dropped.
_ABORT_S = 1.0
_ABORT_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class SamplerSettings:
    """How the client behaves.

    Attributes:
        max_concurrency: most requests in flight per endpoint.
        request_timeout_s: longest wait for one answer.
        straggler_timeout_s: time after which a call's unfinished responses are cut off; 0 for never.
        retries: pace of repetitions.
    """

    max_concurrency: int = 256
    request_timeout_s: float = 3600.0
    straggler_timeout_s: float = 0.0
    retries: Retries = field(default_factory=Retries)


class Sampler:
    """One call's worth of sampling: :meth:`run` once."""

    def __init__(
        self,
        http: HttpClient,
        rotation: Rotation,
        workers: Sequence[Endpoint],
        vocabulary: Vocabulary,
        settings: SamplerSettings,
        oldest_version: int,
    ) -> None:
        """Take what the calls of one engine share.

        Args:
            workers: servers that take aborts (a router passes none on).
            oldest_version: a reply from older weights is a failure: its server was restarted and has not got
                the current ones.
        """
        self._http, self._rotation, self._workers = http, rotation, tuple(workers)
        self._vocabulary, self._settings, self._oldest = vocabulary, settings, oldest_version
        self._cutting = False
        self._in_flight: dict[str, Seat] = {}
        self._numbers = count()
        self._prefix = uuid4().hex

    async def run(
        self,
        requests: Sequence[Request],
        sampling: SamplingParams,
        on_finished: Callable[[Request, Completion, str], None],
    ) -> None:
        """Sample all requests; each completion is handed over as soon as it is there, with its server's url.

        When this ends, in whatever way, nothing of it is left running on a live server.

        Raises:
            EngineLost: no endpoint is left.
            EngineError: a request was refused (named in the message), or no server answers it properly.
        """
        self._sampling, self._on_finished = sampling, on_finished
        tasks = [
            asyncio.create_task(self._sample_group(home, group)) for home, group in self._groups(requests)
        ]
        try:
            await self._wait(tasks)
        finally:
            await self._clear(tasks)

    def _groups(self, requests: Sequence[Request]) -> list[tuple[Seat, list[Request]]]:
        """Deal requests out: samples of one prompt to one endpoint, where they share its cached prefix."""
        live = self._rotation.live
        if not live:
            self._rotation.choose(None)  # raises
        groups: list[tuple[Seat, list[Request]]] = []
        for seat, places in zip(
            live, shares(requests, len(live), self._sampling.max_new_tokens), strict=True
        ):
            by_prompt: dict[tuple[int, ...], list[Request]] = {}
            for place in places:
                by_prompt.setdefault(requests[place].prompt_tokens, []).append(requests[place])
            groups.extend((seat, group) for group in by_prompt.values())
        return groups

    async def _sample_group(self, home: Seat, group: list[Request]) -> None:
        if len(group) > 1 and len(group[0].prompt_tokens) >= PRIME_FROM:
            await self._prime(home, group[0])
        async with asyncio.TaskGroup() as tasks:
            for request in group:
                tasks.create_task(self._sample(home, request))

    async def _prime(self, home: Seat, request: Request) -> None:
        """Have the server compute the prompt once, before the samples arrive.

        Samples that arrive together on a busy server enter one prefill batch, in which none finds the prefix
        that the others are about to compute: of 6 prompts with 8 samples each, 41 of 48 samples computed the
        whole prompt (SGLang 0.5.23, schedule policy fcfs).
        """
        body = Draft(request, self._sampling, self._vocabulary).body(self._new_rid(), 0)
        try:
            async with home.slots:
                await self._call(home, body, self._rotation.tick())
        except EngineError:
            return  # the samples will meet whatever is wrong, and it is handled there

    async def _sample(self, home: Seat, request: Request) -> None:
        """Carry one response to its end, however many calls and servers that takes."""
        draft = Draft(request, self._sampling, self._vocabulary)
        in_vain = 0
        while True:
            seat = self._rotation.choose(home)
            try:
                part = await self._attempt(seat, home, draft)
            except (ServerFailure, BadReply) as error:
                in_vain += 1
                self._check_patience(in_vain, request, error)
                continue
            if part is None:
                continue
            reason = draft.add(part)
            if self._cutting and draft.tokens:
                reason = reason or "abort"
            if reason is not None:
                self._on_finished(request, draft.completion(reason), seat.endpoint.url)
                return
            in_vain = 0 if part.tokens else in_vain + 1
            self._check_patience(in_vain, request, None)

    async def _attempt(self, seat: Seat, home: Seat, draft: Draft) -> Completion | None:
        """Make one call when the endpoint has a free slot; None if it is no longer the one to ask by then."""
        async with seat.slots:
            if (seat.strikes or seat.excluded) and self._rotation.choose(home) is not seat:
                return None
            await self._rotation.wait(seat)
            if seat not in self._rotation.live:
                return None
            sent = self._rotation.tick()
            try:
                part = await self._part(seat, draft, sent)
            except (ServerFailure, BadReply) as error:
                if not seat.excluded:
                    self._rotation.failed(seat, sent, f"request {draft.request.id!r}: {error}")
                raise
        self._rotation.succeeded(seat)
        return part

    def _check_patience(self, in_vain: int, request: Request, error: EngineError | None) -> None:
        if in_vain >= self._rotation.patience:
            why = f"the last time: {error}" if error else "the servers abort it each time"
            raise EngineError(f"request {request.id!r} failed {in_vain} times in a row, others do not; {why}")

    async def _part(self, seat: Seat, draft: Draft, sent: int) -> Completion:
        """Make one call and check its answer."""
        # Cut off before its first token: a response needs one, so it gets one and no more.
        most = 1 if self._cutting else draft.most
        rid = self._new_rid()
        try:
            reply = await self._call(seat, draft.body(rid, most), sent)
        except RequestRefused as error:
            raise RequestRefused(f"request {draft.request.id!r}: {error}", error.status) from error
        try:
            part = parse_reply(reply, draft.expect(rid, most))
        except BadReply as error:
            raise BadReply(f"{seat.endpoint.url}: {error}") from error
        oldest = max(self._oldest, draft.newest_version)
        if part.weight_version < oldest:
            raise ServerFailure(
                f"{seat.endpoint.url} sampled with weight version {part.weight_version}, but {oldest} is "
                "published; it was restarted and has not got the current weights"
            )
        return part

    async def _call(self, seat: Seat, body: dict[str, Any], sent: int) -> dict[str, Any]:
        """Send one /generate; give up waiting when the endpoint leaves the rotation."""
        timeout_s = self._settings.request_timeout_s
        call = asyncio.ensure_future(
            self._http.request_json("POST", seat.endpoint, "/generate", body, timeout_s=timeout_s)
        )
        if body["sampling_params"]["max_new_tokens"] > 1:
            self._in_flight[body["rid"]] = seat
        seat.in_flight.add(sent)
        try:
            both: set[asyncio.Future[Any]] = {call, seat.gone}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            call.cancel()
            raise  # the id stays in _in_flight, so that _clear aborts it on the server
        finally:
            seat.in_flight.discard(sent)
        self._in_flight.pop(body["rid"], None)
        if not call.done():
            call.cancel()
            raise ServerFailure(f"{seat.endpoint.url} was taken out of rotation")
        return call.result()

    async def _wait(self, tasks: Iterable[asyncio.Task[None]]) -> None:
        """Wait for all tasks; after the straggler limit, cut off what is still being sampled."""
        pending = set(tasks)
        limit = self._settings.straggler_timeout_s or None
        while pending:
            done, pending = await asyncio.wait(pending, timeout=limit, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                _raise_first(task)
            if pending:
                # Repeated until all are back: a server ignores an abort of what it has not taken up yet.
                self._cutting, limit = True, _ABORT_S
                await self._abort(self._in_flight)

    async def _clear(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        """Leave nothing running: abort on the servers, then close the connections (which aborts too)."""
        await self._abort(self._in_flight)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _abort(self, in_flight: dict[str, Seat]) -> None:
        """Ask the servers to let go of requests. Best effort: one that is dead has nothing to let go of."""
        calls = [
            self._http.request("POST", worker, "/abort_request", {"rid": rid}, timeout_s=_ABORT_TIMEOUT_S)
            for rid, seat in in_flight.items()
            for worker in self._takers(seat)
        ]
        await asyncio.gather(*calls, return_exceptions=True)

    def _takers(self, seat: Seat) -> tuple[Endpoint, ...]:
        """Who takes the abort of a request: its server, or behind a router every server (one has it)."""
        if seat.excluded:
            return ()
        return (seat.endpoint,) if seat.endpoint in self._workers else self._workers

    def _new_rid(self) -> str:
        """Return an id that this run of the program has not used: a server refuses one that it still knows.

        The dash at the end keeps any id from being the beginning of another: SGLang aborts by prefix.
        """
        return f"{self._prefix}-{next(self._numbers)}-"


def _raise_first(task: asyncio.Task[None]) -> None:
    """Raise a task's error; of a group, the first one (EngineLost before others: it says more)."""
    error = task.exception()
    while isinstance(error, BaseExceptionGroup):
        lost = [inner for inner in error.exceptions if isinstance(inner, EngineLost)]
        error = (lost or error.exceptions)[0]
    if error is not None:
        raise error
