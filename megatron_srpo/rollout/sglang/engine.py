"""The ``sglang`` engine: SGLang servers, local or remote, spoken to over HTTP."""

import concurrent.futures
import queue
import threading
from collections.abc import Callable, Sequence

from megatron_srpo.errors import EngineError
from megatron_srpo.rollout.engine import EngineLost, Parallelism, ProgressCallback
from megatron_srpo.rollout.sglang.endpoint import Endpoint
from megatron_srpo.rollout.sglang.http import EventLoopThread
from megatron_srpo.rollout.sglang.rotation import Rotation
from megatron_srpo.rollout.sglang.sampler import Sampler, SamplerSettings
from megatron_srpo.rollout.sglang.server import SGLangServer
from megatron_srpo.rollout.types import Completion, Request, SamplingParams
from megatron_srpo.rollout.vocabulary import Vocabulary

__all__ = ["EngineLost", "Generation", "SGLangEngine", "SamplerSettings"]

_NO_SERVER = "an SGLang engine needs at least one server; start one or give sglang.urls"

#: What makes two requests the same one, asked again.
_Key = tuple[Request, SamplingParams]


class Generation:
    """Sampling that goes on in the background; see :meth:`SGLangEngine.submit`."""

    def __init__(
        self,
        future: concurrent.futures.Future[list[Completion]],
        finished: "queue.SimpleQueue[int | None]",
        total: int,
        on_progress: ProgressCallback | None,
    ) -> None:
        self._future, self._finished = future, finished
        self._total, self._on_progress = total, on_progress
        future.add_done_callback(lambda _: finished.put(None))

    @property
    def done(self) -> bool:
        """Whether it has ended: with a result, an error, or by cancellation."""
        return self._future.done()

    def result(self) -> list[Completion]:
        """Wait for the completions, in the order of the requests.

        Progress is reported from here, in the thread that waits.

        Raises:
            EngineLost, EngineError: see :meth:`SGLangEngine.submit`; also after :meth:`cancel`.
        """
        while (count := self._finished.get()) is not None:
            if self._on_progress is not None:
                self._on_progress(count, self._total)
        self._finished.put(None)  # for whoever asks again
        try:
            return self._future.result()
        except concurrent.futures.CancelledError as error:
            raise EngineError("sampling was cancelled, or its engine closed") from error

    def cancel(self) -> None:
        """Stop sampling and free the servers of it. Returns at once; finished completions are dropped."""
        self._future.cancel()


class SGLangEngine:
    """A :class:`~megatron_srpo.rollout.engine.RolloutEngine` whose weights are updated through its servers.

    What a server's death, a bad reply or a straggler costs is said in :mod:`.sampler`; which servers are
    asked, in :mod:`.rotation`. Thread-safe.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        generation_endpoints: Sequence[Endpoint] | None = None,
        *,
        vocab_size: int,
        vocab_limit: int | None = None,
        stop_tokens: Sequence[int],
        settings: SamplerSettings | None = None,
        on_finished: Callable[[str], None] | None = None,
    ) -> None:
        """Connect to running servers; nothing is sent before the first call.

        Args:
            endpoints: the servers that hold weights.
            generation_endpoints: where requests go: a router, or by default the servers themselves.
            vocab_size: token ids of the model (``config.vocab_size``). A prompt with another id would end the
                server, so it is refused here.
            vocab_limit: number of ids in use (the tokenizer's length); the others are never sampled. Default:
                all.
            stop_tokens: ids that end a response. Servers also stop at the end-of-sequence ids of the model
                folder (generation config, config and tokenizer), which therefore belong here. Empty for none,
                the folder's included.
            settings: pace and limits of the client.
            on_finished: called on the client's thread with a server's url whenever a response from it is
                complete: a sign of life for a watcher.

        Raises:
            EngineError: no endpoint, or ids out of range.
        """
        self._vocabulary = Vocabulary.of(vocab_size, vocab_limit, stop_tokens)
        if not endpoints:
            raise EngineError(_NO_SERVER)
        self._workers = tuple(endpoints)
        self._generation = tuple(generation_endpoints or endpoints)
        self._direct = self._generation == self._workers
        self._settings = settings or SamplerSettings()
        self._on_finished = on_finished or (lambda url: None)
        self._version = 0
        self._lock = threading.Lock()
        self._kept: dict[_Key, Completion] = {}
        self._excluded: set[str] = set()
        self._loop = EventLoopThread()
        self._servers = tuple(SGLangServer(endpoint, self._loop) for endpoint in endpoints)
        self._rotation = self._loop.submit(self._make_rotation()).result()

    @property
    def parallelism(self) -> Parallelism:
        """One rank of a replica talks to the servers."""
        return "leader"

    @property
    def weight_version(self) -> int:
        """Version last given to :meth:`published`; 0 at first."""
        return self._version

    @property
    def servers(self) -> tuple[SGLangServer, ...]:
        """Control interface of every server, in the order of the endpoints."""
        return self._servers

    def published(self, version: int) -> None:
        """Note that all servers hold the weights of this version.

        In later calls a reply sampled wholly or partly by older weights counts as a failure of its server.

        Raises:
            EngineError: the version is older than the last one.
        """
        if version < self._version:
            raise EngineError(f"weight version {version} is older than the engine's {self._version}")
        self._version = version

    def generate(
        self,
        requests: Sequence[Request],
        sampling: SamplingParams,
        on_progress: ProgressCallback | None = None,
    ) -> list[Completion]:
        """Answer every request, in the order given: :meth:`submit` and its result. Ctrl-C cancels."""
        generation = self.submit(requests, sampling, on_progress)
        try:
            return generation.result()
        finally:
            generation.cancel()  # a no-op unless the wait itself was interrupted

    def submit(
        self,
        requests: Sequence[Request],
        sampling: SamplingParams,
        on_progress: ProgressCallback | None = None,
    ) -> Generation:
        """Start sampling and return at once.

        Completions that a failed call had finished are kept, and a later call with the same requests (id,
        prompt, seed) and sampling parameters samples only those that are missing. They are dropped when a
        call that holds them succeeds.

        Raises:
            EngineError: a request that cannot be served (empty prompt, unknown token, the id of another
                one), or a closed engine. From the result: EngineLost when no server can
                take requests any more, EngineError when one was refused (too long, say) or cancelled.
        """
        requests = tuple(requests)
        self._check(requests)
        with self._lock:
            known = {
                request: self._kept[request, sampling]
                for request in requests
                if (request, sampling) in self._kept
            }
        finished: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        future = self._loop.submit(self._run(requests, sampling, known, finished.put))
        return Generation(future, finished, len(requests), on_progress)

    def exclude(self, url: str, gone: bool = False) -> None:
        """Take a server out of rotation; its requests in flight move to the others.

        Behind a router nobody knows whose they are, so all that are in flight are sent again.

        Args:
            gone: it does not come back as it was; fail the other calls that wait for it, too.

        Raises:
            EngineError: the engine has no such server.
        """
        self._check_url(url)
        with self._lock:
            for server in self._servers:
                if gone and server.name == url:
                    server.give_up()
            news = url not in self._excluded
            self._excluded.add(url)
            none_left = self._excluded.issuperset(worker.url for worker in self._workers)
            fronts = () if self._direct else self._generation
        if self._direct:
            self._loop.call(self._rotation.exclude, url)
        for front in fronts if news else ():
            self._loop.call(self._rotation.exclude if none_left else self._rotation.bounce, front.url)

    def include(self, url: str) -> None:
        """Put a server back into rotation, its failures forgotten. Calls that are running use it, too.

        Raises:
            EngineError: the engine has no such server.
        """
        self._check_url(url)
        with self._lock:
            self._excluded.discard(url)
            for server in self._servers:
                if server.name == url:
                    server.take_back()
            fronts = () if self._direct else self._generation
        for back in (url, *(front.url for front in fronts)):
            self._loop.call(self._rotation.include, back)

    def set_servers(self, endpoints: Sequence[Endpoint]) -> None:
        """Take note that these are the servers now; all of them are in rotation.

        Some may have been started anew, perhaps elsewhere; some are new, others gone. Requests in flight at
        those that are gone move to the others.

        Raises:
            EngineError: there is none.
        """
        if not endpoints:
            raise EngineError(_NO_SERVER)
        with self._lock:
            known = {server.endpoint: server for server in self._servers}
            self._workers = tuple(endpoints)
            self._servers = tuple(
                known.get(endpoint) or SGLangServer(endpoint, self._loop) for endpoint in endpoints
            )
            self._excluded.clear()
            for server in self._servers:
                server.take_back()
            if self._direct:
                self._generation = self._workers
            generation = self._generation
        self._loop.call(self._rotation.set_endpoints, generation)

    def close(self) -> None:
        """Cancel what runs and close all connections; the servers stay. Idempotent."""
        self._loop.close()

    async def _make_rotation(self) -> Rotation:
        return Rotation(self._generation, self._settings.max_concurrency, self._settings.retries)

    async def _run(
        self,
        requests: tuple[Request, ...],
        sampling: SamplingParams,
        known: dict[Request, Completion],
        count: Callable[[int], None],
    ) -> list[Completion]:
        """Sample what is not known yet, keeping each completion until the call succeeds."""

        def finished(request: Request, completion: Completion, url: str) -> None:
            known[request] = completion
            with self._lock:
                self._kept[request, sampling] = completion
            count(len(known))
            self._on_finished(url)

        missing = [request for request in requests if request not in known]
        if missing:
            self._rotation.forgive()
            sampler = Sampler(
                self._loop.http,
                self._rotation,
                self._workers,
                self._vocabulary,
                self._settings,
                self._version,
            )
            await sampler.run(missing, sampling, finished)
        with self._lock:
            for request in requests:
                self._kept.pop((request, sampling), None)
        return [known[request] for request in requests]

    def _check(self, requests: Sequence[Request]) -> None:
        ids: set[str] = set()
        for request in requests:
            if request.id in ids:
                raise EngineError(f"two requests have the id {request.id!r}; give each one of its own")
            ids.add(request.id)
            self._vocabulary.check_prompt(request)

    def _check_url(self, url: str) -> None:
        urls = [endpoint.url for endpoint in self._workers]
        if url not in urls:
            raise EngineError(f"the engine has no server {url!r}; its servers are {', '.join(urls)}")
