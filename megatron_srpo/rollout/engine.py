"""The protocol of a rollout engine: what the training loop may ask of it, whichever engine runs."""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Protocol

from torch import Tensor

from megatron_srpo.rollout.types import Completion, Request, SamplingParams

#: Called with (finished requests, all requests) of the running call.
ProgressCallback = Callable[[int, int], None]

#: "leader": only the first rank of a data-parallel replica talks to the engine (an HTTP server).
#: "every_rank": each rank of the replica holds an engine of its own and takes a share of the requests.
Parallelism = Literal["leader", "every_rank"]


class RolloutEngine(Protocol):
    """Samples responses from the policy's current weights.

    Implementations raise :class:`~megatron_srpo.errors.EngineError` for whatever keeps them from answering.
    """

    @property
    def parallelism(self) -> Parallelism:
        """Which ranks of a replica talk to this engine."""
        ...

    @property
    def weight_version(self) -> int:
        """Version given to the last successful :meth:`update_weights`; 0 for the weights loaded first."""
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
        """
        ...

    def update_weights(self, tensors: Iterator[tuple[str, Tensor]], version: int) -> None:
        """Replace all weights by ``tensors``, full tensors under their Hugging Face names, in any order.

        Nothing is generated from a mixture: a failed update leaves the engine refusing to generate until one
        succeeds.

        Raises:
            EngineError: a tensor is missing, unknown, given twice with different values or of another shape
                (the message names it), or ``version`` is older than the engine's.
        """
        ...

    def close(self) -> None:
        """Free the engine's resources. Idempotent; afterwards every other call raises EngineError."""
        ...
