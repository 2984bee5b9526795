"""Weights and passes in FP8: reading and filling Transformer Engine's tensors, and leaving FP8 for a pass."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from megatron_srpo.model.megatron_core import TransformerConfig, dequantize_fp8_tensor, is_float8tensor


def is_fp8(weight: torch.Tensor) -> bool:
    """Say whether a weight is kept in FP8."""
    return bool(is_float8tensor(weight))


def plain(weight: torch.Tensor) -> torch.Tensor:
    """Return a weight as an ordinary tensor: itself, or for one in FP8 the values that it stands for."""
    return dequantize_fp8_tensor(weight.detach()) if is_fp8(weight) else weight


@torch.no_grad()
def fill(weight: torch.Tensor, values: torch.Tensor) -> None:
    """Give a weight these values, of its shape.

    A weight in FP8 keeps what it was made from, before rounding, until the optimizer takes its fp32 weights
    from there; that gets the values too.
    """
    weight.copy_(values)
    exact = getattr(weight, "get_high_precision_init_val", None)  # Transformer Engine's name
    if exact is not None and exact() is not None:
        exact().copy_(values)


@contextmanager
def without_fp8(model: torch.nn.Module) -> Iterator[None]:
    """Compute the model's passes within the context in bfloat16; one without FP8 is left as it is.

    Megatron-Core asks the configuration for FP8 at every pass. Weights must not be in FP8 themselves.
    """
    configs = {id(config): config for config in map(_config_of, model.modules()) if config is not None}
    kept = {key: config.fp8 for key, config in configs.items()}
    in_fp8 = any(config.fp8 and config.fp8_param for config in configs.values())
    assert not in_fp8, "weights in FP8 have no bfloat16 pass"
    try:
        for config in configs.values():
            config.fp8 = None
        yield
    finally:
        for key, config in configs.items():
            config.fp8 = kept[key]


def _config_of(module: torch.nn.Module) -> TransformerConfig | None:
    config = getattr(module, "config", None)
    return config if isinstance(config, TransformerConfig) else None
