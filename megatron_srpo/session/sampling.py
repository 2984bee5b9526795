"""Sampling over all replicas, ahead of the trainer where wanted, and whatever happens to the engines."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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


def _nothing() -> None:
    pass


class LocalSampling:
    """Answers requests with the engines inside the ranks of this replica, when they are asked for."""

    def __init__(self, engine: RolloutEngine, groups: ProcessGroups) -> None:
        self._engine, self._groups = engine, groups

    def start(self, requests: Sequence[Request], params: SamplingParams) -> Ticket:
        """Hand requests in."""
        return Ticket(requests, params)

    def finish(self, ticket: Ticket, before_restore: Callable[[], object] = _nothing) -> list[Completion]:
        """Return the answers, in order. A collective over the replica.

        Args:
            before_restore: see :meth:`ServerSampling.finish`; these engines are never lost alone.

        Raises:
            EngineError: on all ranks of the replica, what keeps the engine from answering.
        """
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
        generation = None if self._engine is None else self._engine.submit(requests, params)
        return Ticket(requests, params, generation)

    def finish(self, ticket: Ticket, before_restore: Callable[[], object] = _nothing) -> list[Completion]:
        """Return the answers, in order. A collective over the job.

        Servers that were lost on the way come back with the current weights, and only what is missing is
        sampled again. All replicas take part, those too that have their answers: all hold the weights.

        Args:
            before_restore: called on all ranks before servers are brought back, which may take long, and when
                they cannot be; what it raises there, on all ranks alike, ends the wait.

        Raises:
            EngineError: on all ranks of the replica, what keeps the engine from answering.
        """
        while True:
            try:
                if ticket.completions is None:
                    count = len(ticket.requests)
                    ticket.completions = collect_started(ticket.generation, count, self._groups.replica)
            except EngineLost:
                ticket.completions = None
            if not largest_anywhere(ticket.completions is None):
                assert ticket.completions is not None
                return ticket.completions
            before_restore()
            try:
                self._publisher.restore()
            except EngineError:
                before_restore()  # what ended the wait for servers may be a request to stop
                raise
            if ticket.completions is None:
                ticket.generation = self.start(ticket.requests, ticket.params).generation

    def cancel(self, ticket: Ticket) -> None:
        """Stop sampling for these requests."""
        if ticket.generation is not None:
            ticket.generation.cancel()


#: How a run samples.
Sampling = LocalSampling | ServerSampling
