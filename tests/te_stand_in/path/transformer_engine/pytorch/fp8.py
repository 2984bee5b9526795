"""The FP8 state of a pass, and rounding in the place of FP8 products."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from transformer_engine.common.recipe import DelayedScaling, Float8BlockScaling, MXFP8BlockScaling, Recipe


class FP8GlobalStateManager:
    """Whether FP8 is on.

    For the tests, ``passes`` collects what each product used, and ``group`` is that in which scales are
    agreed upon.
    """

    recipe: Recipe | None = None
    passes: list[str] = []  # noqa: RUF012
    group: Any = None

    @classmethod
    def is_fp8_enabled(cls) -> bool:
        return cls.recipe is not None


@contextmanager
def fp8_autocast(
    enabled: bool = True, fp8_recipe: Recipe | None = None, fp8_group: Any = None
) -> Iterator[None]:
    """Turn FP8 on or off."""
    before = FP8GlobalStateManager.recipe
    FP8GlobalStateManager.recipe = fp8_recipe if enabled else None
    FP8GlobalStateManager.group = fp8_group
    try:
        yield
    finally:
        FP8GlobalStateManager.recipe = before


@contextmanager
def fp8_model_init(
    enabled: bool = True, recipe: Recipe | None = None, preserve_high_precision_init_val: bool = False
) -> Iterator[None]:
    """Weights in FP8 are CUDA tensors; there is no stand-in for them."""
    raise NotImplementedError("weights in FP8 need Transformer Engine")
    yield


class _Rounded(torch.autograd.Function):
    """Rounds to e4m3 with one scale per group of values; the gradient passes."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: int | None) -> torch.Tensor:
        rows = x.detach().float()
        flat = rows.reshape(1, -1) if group is None else rows.reshape(-1, min(group, rows.shape[-1]))
        scale = 448.0 / flat.abs().amax(-1, keepdim=True).clamp(min=1e-12)
        rounded = (flat * scale).to(torch.float8_e4m3fn).float() / scale
        return rounded.reshape(x.shape).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad, None


def operands(x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the operands of a product as the pass in force computes it.

    Refuses the sizes that Transformer Engine 2.10 refuses (``assert_dim_for_fp8_exec``, the MXFP8 quantizer).
    """
    recipe = FP8GlobalStateManager.recipe
    FP8GlobalStateManager.passes.append(type(recipe).__name__ if recipe else "bf16")
    if recipe is None:
        return x, weight
    rows, columns = (32, 32) if isinstance(recipe, MXFP8BlockScaling) else (8, 16)
    for tensor in (x, weight):
        if tensor.shape[:-1].numel() % rows or tensor.shape[-1] % columns:
            raise ValueError(f"FP8 execution requires other dimensions than {tuple(tensor.shape)}")
    if torch.is_grad_enabled() and x.shape[:-1].numel() % 16:  # cuBLAS: the gradient of the weights
        raise ValueError(f"FP8 GEMM: leading dimension {tuple(x.shape)}; caller must pad")
    groups = {Float8BlockScaling: 128, MXFP8BlockScaling: 32, DelayedScaling: None}
    group = groups.get(type(recipe))
    return _Rounded.apply(x, group), _Rounded.apply(weight, group)
