"""Adam whose state lives in host memory and visits the device a few parameters at a time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from megatron_srpo import platform
from megatron_srpo.model.megatron_core import MegatronOptimizer

#: Bytes of state on the device at once, where no single parameter has more.
VISITING_BYTES = 1 << 30


class HostAdam:
    """Keeps the moments of one of Megatron-Core's optimizers, and its fp32 weights, in host memory.

    Between steps all of them are host tensors, so whoever saves or loads them sees no difference. A step is
    taken on the device by the same Adam: it gives the same weights bit for bit.

    Args:
        part: Megatron-Core's optimizer, one of a chain.
        model: the weights that it trains. What of the optimizer's parameters is the model's own stays there.
    """

    def __init__(self, part: MegatronOptimizer, model: torch.nn.Module) -> None:
        self._adam: torch.optim.Optimizer = part.optimizer
        used = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self._dtype = next(model.parameters()).dtype
        self._weights = {
            weight: platform.to_host(weight.data)
            for group in self._adam.param_groups
            for weight in group["params"]
            if weight.untyped_storage().data_ptr() not in used
        }
        self.leave()

    def leave(self) -> None:
        """Move to host memory what was allocated elsewhere: after the state was made or loaded."""
        for weight, home in self._weights.items():
            weight.data = home
        for group in self._adam.param_groups:
            for parameter in group["params"]:
                for name, value in self._moments(parameter).items():
                    if not platform.is_on_host(value):
                        self._adam.state[parameter][name] = platform.to_host(value)

    @contextmanager
    def in_step(self) -> Iterator[None]:
        """Let the fp32 weights take gradients, which lie on the device, until the end of the context."""
        for weight, home in self._weights.items():
            # The right shape on the right device, but the memory of one number.
            weight.data = torch.empty(1, dtype=home.dtype, device=platform.device()).expand(home.shape)
        try:
            yield
        finally:
            platform.synchronize()  # whoever reads the host tensors next may not wait for the device
            self.leave()

    def step(self) -> None:
        """Let Adam step over every parameter. Leaves the new weights on the device, in the model's type."""
        groups = self._adam.param_groups
        try:
            for group in groups:
                settings = group
                for few in self._few_by_few(group["params"]):
                    settings = {**group, "params": few}
                    self._step_over(settings)
                # Transformer Engine's Adam counts its steps here, once for all parameters.
                group.update({name: value for name, value in settings.items() if name != "params"})
        finally:
            self._adam.param_groups = groups

    @contextmanager
    def stepped(self) -> Iterator[None]:
        """Let Adam's own step find nothing left to do, until the end of the context."""
        groups = self._adam.param_groups
        self._adam.param_groups = []
        try:
            yield
        finally:
            self._adam.param_groups = groups

    def _step_over(self, group: dict) -> None:
        homes = {parameter: self._bring(parameter) for parameter in group["params"]}
        self._adam.param_groups = [group]
        self._adam.step()
        for parameter, moments in homes.items():
            self._send_home(parameter, moments)

    def _bring(self, parameter: Tensor) -> dict[str, Tensor]:
        """Put copies on the device in the places of a parameter's state; return the moments' homes."""
        if parameter in self._weights:
            parameter.data = _visitor(self._weights[parameter])
        homes = self._moments(parameter)
        for name, home in homes.items():
            self._adam.state[parameter][name] = _visitor(home)
        return homes

    def _send_home(self, parameter: Tensor, homes: dict[str, Tensor]) -> None:
        for name, value in self._moments(parameter).items():
            home = homes.get(name)  # none in the first step, in which Adam makes the moments
            self._adam.state[parameter][name] = (
                platform.to_host(value) if home is None else home.copy_(value, non_blocking=True)
            )
        if parameter in self._weights:
            self._weights[parameter].copy_(parameter.data, non_blocking=True)
            # Megatron-Core copies it into the model next: the same rounding, without waiting for the host.
            parameter.data = parameter.data.to(self._dtype)

    def _moments(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return the state that is as large as the parameter; a counter of steps stays where it is."""
        state = self._adam.state.get(parameter, {})
        return {
            name: value
            for name, value in state.items()
            if isinstance(value, Tensor) and value.shape == parameter.shape
        }

    def _few_by_few(self, parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        few: list[Tensor] = []
        size = 0
        for parameter in parameters:
            own = parameter.numel() * (12 if parameter in self._weights else 8)
            if few and size + own > VISITING_BYTES:
                yield few
                few, size = [], 0
            few.append(parameter)
            size += own
        if few:
            yield few


def _visitor(home: Tensor) -> Tensor:
    return home.to(platform.device(), non_blocking=True, copy=True)
