"""Weights for local engines: full tensors, gathered tensor by tensor on every rank."""

import torch

from megatron_srpo.model.architecture import Qwen3Architecture
from megatron_srpo.model.parallel import ProcessGroups
from megatron_srpo.rollout.local import LocalEngine
from megatron_srpo.weights.gather import hf_tensors


class LocalPublisher:
    """A :class:`~megatron_srpo.rollout.engine.WeightPublisher` for the engine inside each rank."""

    def __init__(
        self,
        engine: LocalEngine,
        policy: torch.nn.Module,
        arch: Qwen3Architecture,
        groups: ProcessGroups,
    ) -> None:
        self._engine, self._policy = engine, policy
        self._arch, self._groups = arch, groups

    def publish(self, version: int) -> dict[str, float]:
        """Copy the weights into this rank's engine; see :meth:`WeightPublisher.publish`."""
        tensors = hf_tensors(self._policy, self._arch, self._groups)
        try:
            self._engine.update_weights(tensors, version)
        finally:
            for _ in tensors:  # a collective: every rank takes part to the end, even when its engine refused
                pass
        return {}

    def restore(self) -> None:
        """Do nothing: an engine in this process is not lost without it."""

    def rest(self) -> None:
        """Do nothing: the engine's weights are small beside the trainer's."""

    def close(self) -> None:
        """Do nothing: nothing was started."""
