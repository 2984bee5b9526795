"""Weights that live in host memory and visit the device for their pass."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from megatron_srpo import platform


class HostWeights:
    """Keeps a model's parameters in host memory.

    Between passes ``parameter.data`` is the host tensor, so whoever updates or saves the model sees no
    difference. What is on the device during a pass is a copy, which the pass must not change.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        """Move the parameters of ``model`` to (pinned) host memory and free the device's."""
        self._model = model
        self._host = [platform.to_host(parameter.data) for parameter in model.parameters()]
        self._leave()

    @contextmanager
    def on_device(self) -> Iterator[torch.nn.Module]:
        """Bring the parameters to the device for the length of the context."""
        device = platform.device()
        for parameter, host in zip(self._model.parameters(), self._host, strict=True):
            parameter.data = host.to(device, non_blocking=True, copy=True)
        try:
            yield self._model
        finally:
            self._leave()

    def _leave(self) -> None:
        for parameter, host in zip(self._model.parameters(), self._host, strict=True):
            parameter.data = host
