"""The protocol of a rollout engine: what the training loop may ask of it, whichever engine runs."""

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from megatron_srpo.errors import EngineError
from megatron_srpo.rollout.types import Completion, Request, SamplingParams

#: Called with (finished requests, all requests) of the running call.
ProgressCallback = Callable[[int, int], None]

#: "leader": only the first rank of a data-parallel replica talks to the engine (an HTTP server).
#: "every_rank": each rank of the replica holds an engine of its own and takes a share of the requests.
Parallelism = Literal["leader", "every_rank"]


class EngineLost(EngineError):
    """No server can answer any more. What was finished is kept: asked again, the engine samples the rest."""


class Generation(Protocol):
    """Requests being answered in the background."""

    def result(self) -> list[Completion]:
        """Wait for all answers, in the order of the requests; raises as :meth:`RolloutEngine.generate`."""
        ...

    def cancel(self) -> None:
        """Stop, and leave nothing running in the engine."""
        ...


class RolloutEngine(Protocol):
    """Samples responses from the policy's current weights. A :class:`WeightPublisher` gives it those.

    Implementations raise :class:`~megatron_srpo.errors.EngineError` for whatever keeps them from answering.
    """

    @property
    def parallelism(self) -> Parallelism:
        """Which ranks of a replica talk to this engine."""
        ...

    @property
    def weight_version(self) -> int:
        """Version of the weights that answer now; 0 for those loaded first."""
        ...

    def generate(
        self,
        requests: Sequence[Request],
        sampling: SamplingParams,
        on_progress: ProgressCallback | None = None,
    ) -> list[Completion]:
        """Answer every request, in the order given.

        Raises:
            EngineError: a request that cannot be served (too long, unknown token), an engine that is closed,
                unreachable, or left with a mixture of weights by a failed update.
            EngineLost: as described there.
        """
        ...

    def close(self) -> None:
        """Free the engine's resources. Idempotent; afterwards every other call raises EngineError."""
        ...


class BackgroundEngine(RolloutEngine, Protocol):
    """An engine that samples beside the trainer."""

    def submit(
        self,
        requests: Sequence[Request],
        sampling: SamplingParams,
        on_progress: ProgressCallback | None = None,
    ) -> Generation:
        """Start to answer every request and return at once."""
        ...


class WeightPublisher(Protocol):
    """Gives the policy's weights to the engines of all replicas. Every call is a collective over the job."""

    def publish(self, version: int) -> dict[str, float]:
        """Replace all weights, under ``version``; return metrics (``sync/...``).

        Nothing is ever sampled from a mixture: after a failure the engine refuses until it has succeeded.

        Raises:
            EngineError: on all ranks, when it failed for good.
        """
        ...

    def restore(self) -> None:
        """Bring engines that were lost back, with the weights published last.

        Raises:
            EngineError: on all ranks, when they cannot be brought back.
        """
        ...

    def rest(self) -> None:
        """Nothing will be sampled until the next publication: release what the trainer needs."""
        ...

    def close(self) -> None:
        """End what was started for the engines. Idempotent."""
        ...
