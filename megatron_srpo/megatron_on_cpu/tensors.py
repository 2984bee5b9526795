"""Tensor creation on, movement to, and type names of the CUDA device."""

import functools
import sys
from typing import Any

import torch

_FACTORIES = (
    "arange",
    "empty",
    "empty_like",
    "full",
    "ones",
    "ones_like",
    "tensor",
    "zeros",
    "zeros_like",
)


def _is_cuda(place: Any) -> bool:
    if isinstance(place, str):
        return place.startswith("cuda")
    return isinstance(place, torch.device) and place.type == "cuda"


def _on_cpu(factory: Any) -> Any:
    @functools.wraps(factory)
    def create(*args: Any, **kwargs: Any) -> torch.Tensor:
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = torch.device("cpu")
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        return factory(*args, **kwargs)

    return create


def _identity(self: Any, *args: Any, **kwargs: Any) -> Any:
    return self


_tensor_type = torch.Tensor.type


def _type_for_megatron(self: torch.Tensor, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
    """Name CPU tensors ``torch.cuda.*`` to Megatron-Core's optimizers only: they compare these strings."""
    if dtype is not None:
        return _tensor_type(self, dtype, *args, **kwargs)
    name = _tensor_type(self)
    caller = sys._getframe(1).f_globals.get("__name__", "")
    return name.replace("torch.", "torch.cuda.", 1) if caller.startswith("megatron.core") else name


def replace() -> None:
    """Let ``device="cuda"``, ``pin_memory=True`` and ``.cuda()`` mean the CPU."""
    # ``torch.device(...)`` as a context, by which transformers loads models, knows these functions by
    # identity and remembers them at its first use: let it do so while they are the originals, or loaded
    # models get uninitialised RoPE frequencies.
    torch.utils._device._device_constructors()
    for name in _FACTORIES:
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    target: Any = torch.Tensor
    target.cuda, target.type = _identity, _type_for_megatron
    module: Any = torch.nn.Module
    module.cuda = _identity
