"""Sampling over all replicas, ahead of the trainer where wanted, and whatever happens to the engines."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from megatron_srpo import platform
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


class LocalSampling:
    """Answers requests with the engines inside the ranks of this replica, when they are asked for."""

    def __init__(self, engine: RolloutEngine, groups: ProcessGroups) -> None:
        self._engine, self._groups = engine, groups

    def start(self, requests: Sequence[Request], params: SamplingParams) -> Ticket:
        """Hand requests in."""
        return Ticket(requests, params)

    def finish(self, ticket: Ticket) -> list[Completion]:
        """Return the answers, in order. A collective over the replica.

        Raises:
            EngineError: on all ranks of the replica, what keeps the engine from answering.
        """
        return collect(self._engine, ticket.requests, ticket.params, self._groups.replica)


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

    def finish(self, ticket: Ticket) -> list[Completion]:
        """Return the answers, in order. A collective over the job.

        Servers that were lost on the way come back with the current weights, and only what is missing is
        sampled again. All replicas take part, those too that have their answers: all hold the weights.

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
            if not _anywhere(ticket.completions is None):
                assert ticket.completions is not None
                return ticket.completions
            self._publisher.restore()
            if ticket.completions is None:
                ticket.generation = self.start(ticket.requests, ticket.params).generation


#: How a run samples.
Sampling = LocalSampling | ServerSampling


def _anywhere(happened: bool) -> bool:
    """Say whether something happened on any rank of the job."""
    if dist.get_world_size() == 1:
        return happened
    flag = torch.tensor(float(happened), device=platform.device())
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag.item())
