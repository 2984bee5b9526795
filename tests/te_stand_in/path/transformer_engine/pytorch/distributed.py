"""Recomputation, and the random states of tensor parallelism."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint as recompute


class CudaRNGStatesTracker:
    """Only a base class to Megatron-Core."""


def activation_recompute_forward(
    activation_recompute: bool = False, recompute_phase: bool = False
) -> AbstractContextManager[None]:
    """Tells real products in which of the two passes they are."""
    return nullcontext()


def is_fp8_activation_recompute_enabled() -> bool:
    """Never within a CUDA graph."""
    return False


def checkpoint(
    function: Callable,
    *args: Any,
    distribute_saved_activations: bool = False,
    get_rng_state_tracker: Callable | None = None,
    tp_group: Any = None,
    **options: Any,
) -> Any:
    """Compute ``function`` again in backward, in the FP8 state that it was first computed in."""
    from transformer_engine.pytorch.fp8 import FP8GlobalStateManager, fp8_autocast

    assert torch.is_grad_enabled(), "what is kept for the backward pass is left for another one"
    recipe = FP8GlobalStateManager.recipe

    def again(*inputs: Any) -> Any:
        with fp8_autocast(recipe is not None, recipe):
            return function(*inputs)

    return recompute(again, *args, use_reentrant=True, preserve_rng_state=False)
