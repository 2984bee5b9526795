"""Sampling over all replicas, ahead of the trainer where wanted, and whatever happens to the engines."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from megatron_srpo.errors import EngineError
from megatron_srpo.model.parallel import ProcessGroups
from megatron_srpo.rollout.collect import collect, collect_started
from megatron_srpo.rollout.engine import (
    BackgroundEngine,
    EngineLost,
    Generation,
    RolloutEngine,
    WeightPublisher,
)
from megatron_srpo.rollout.types import Completion, Request, SamplingParams
from megatron_srpo.training.exchange import largest_anywhere

#: Pause between two looks for a request to stop while servers sample.
_LOOK_EVERY_S = 0.5


@dataclass
class Ticket:
    """Requests of this replica that were handed in.

    Attributes:
        generation: what works on them in the background, on the replica's leader.
        completions: the answers, once they are there.
    """

    requests: Sequence[Request]
    params: SamplingParams
    generation: Generation | None = None
    completions: list[Completion] | None = None


class Requests(Protocol):
    """What may end sampling before its time (:class:`~megatron_srpo.session.control.Control`)."""

    def pending(self) -> bool:
        """Say whether this rank was asked to stop. No collective."""
        ...

    def heed(self) -> None:
        """Raise, on all ranks, when any was asked to stop. A collective over the job."""
        ...


class LocalSampling:
    """Answers requests with the engines inside the ranks of this replica, when they are asked for."""

    def __init__(self, engine: RolloutEngine, groups: ProcessGroups) -> None:
        self._engine, self._groups = engine, groups

    def start(self, requests: Sequence[Request], params: SamplingParams) -> Ticket:
        """Hand requests in."""
        return Ticket(requests, params)

    def finish(self, ticket: Ticket, stop: Requests | None = None) -> list[Completion]:
        """Return the answers, in order. A collective over the replica.

        Args:
            stop: see :meth:`ServerSampling.finish`; these engines are in the way of whoever would look.

        Raises:
            EngineError: on all ranks of the replica, what keeps the engine from answering.
        """
        if ticket.completions is not None or not ticket.requests:
            return ticket.completions or []
        return collect(self._engine, ticket.requests, ticket.params, self._groups.replica)

    def cancel(self, ticket: Ticket) -> None:
        """Forget requests: nothing has begun."""


class ServerSampling:
    """Answers requests with servers beside the trainer, which begin at once and may be lost and come back.

    Args:
        engine: on the leader of each replica; None on other ranks.
    """

    def __init__(
        self, engine: BackgroundEngine | None, publisher: WeightPublisher, groups: ProcessGroups
    ) -> None:
        self._engine, self._publisher, self._groups = engine, publisher, groups

    def start(self, requests: Sequence[Request], params: SamplingParams) -> Ticket:
        """Hand requests in."""
        if not requests:
            return Ticket(requests, params, completions=[])
        generation = None if self._engine is None else self._engine.submit(requests, params)
        return Ticket(requests, params, generation)

    def finish(self, ticket: Ticket, stop: Requests | None = None) -> list[Completion]:
        """Return the answers, in order. A collective over the job.

        Servers that were lost on the way come back with the current weights, and only what is missing is
        sampled again. All replicas take part, those too that have their answers: all hold the weights.

        Args:
            stop: asked while the answers are awaited, and heeded before lost servers are waited for.

        Raises:
            EngineError: on all ranks of the replica, what keeps the engine from answering.
            StopRequested: on all ranks, where ``stop`` says so.
        """
        while True:
            try:
                if ticket.completions is None:
                    generation = ticket.generation
                    if stop is not None and generation is not None:
                        generation = _GivenUpOnRequest(generation, stop.pending)
                    count = len(ticket.requests)
                    ticket.completions = collect_started(generation, count, self._groups.replica)
            except EngineLost:
                ticket.completions = None
            if not largest_anywhere(ticket.completions is None):
                assert ticket.completions is not None
                return ticket.completions
            self._restore(stop)
            if ticket.completions is None:
                ticket.generation = self.start(ticket.requests, ticket.params).generation

    def _restore(self, stop: Requests | None) -> None:
        if stop is None:
            self._publisher.restore()
            return
        stop.heed()
        try:
            self._publisher.restore()
        except EngineError:
            stop.heed()  # which may be why nobody waited any longer
            raise

    def cancel(self, ticket: Ticket) -> None:
        """Stop sampling for these requests."""
        if ticket.generation is not None:
            ticket.generation.cancel()


class _GivenUpOnRequest:
    """A generation that counts as lost, within a moment, when this rank is asked to stop."""

    def __init__(self, generation: Generation, asked: Callable[[], bool]) -> None:
        self._generation, self._asked = generation, asked
        self._over = threading.Event()
        self._given_up = False

    def result(self) -> list[Completion]:
        watcher = threading.Thread(target=self._watch, name="stop-while-sampling", daemon=True)
        watcher.start()
        try:
            return self._generation.result()
        except EngineError as error:
            if self._given_up:
                raise EngineLost("the run shall stop") from error
            raise
        finally:
            self._over.set()
            watcher.join()

    def cancel(self) -> None:
        self._generation.cancel()

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_EVERY_S):
            if self._asked():
                self._given_up = True
                self._generation.cancel()
                return


class Sampling(Protocol):
    """How a run samples."""

    def start(self, requests: Sequence[Request], params: SamplingParams) -> Ticket:
        """Hand requests in."""
        ...

    def finish(self, ticket: Ticket, stop: Requests | None = None) -> list[Completion]:
        """Return the answers, in order. A collective; see the implementations."""
        ...

    def cancel(self, ticket: Ticket) -> None:
        """Stop sampling for these requests."""
        ...
