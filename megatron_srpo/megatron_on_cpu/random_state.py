"""Megatron-Core's CUDA random-number state, kept in the CPU generator."""

from typing import Any

import torch


def _get_state(device: Any = "cuda", clone: bool = False, graph_safe: bool = False) -> torch.Tensor:
    return torch.get_rng_state()


def _set_state(state: torch.Tensor, device: Any = -1, graph_safe: bool = False) -> None:
    torch.set_rng_state(state)


def _seed(seed: int) -> None:
    torch.default_generator.manual_seed(int(seed))


def replace_torch() -> None:
    """Answer ``torch.cuda``'s generator calls with the CPU generator."""
    for module in (torch.cuda, torch.cuda.random):
        target: Any = module
        target.get_rng_state, target.set_rng_state = _get_state, _set_state
        target.manual_seed = target.manual_seed_all = _seed


def replace_megatron() -> None:
    """Answer the two helpers of Megatron-Core that reach CUDA's generators directly."""
    import megatron.core.tensor_parallel.random as megatron_random

    megatron_random._get_cuda_rng_state = _get_state
    megatron_random._set_cuda_rng_state = _set_state
