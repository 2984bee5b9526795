"""Padding of experts' tokens to what FP8 products take."""

import torch
from torch import Tensor

from transformer_engine.pytorch.fp8 import FP8GlobalStateManager, MXFP8BlockScaling


def _padded(splits: list[int]) -> list[int]:
    unit = 32 if isinstance(FP8GlobalStateManager.recipe, MXFP8BlockScaling) else 16
    return [-(-count // unit) * unit for count in splits]


class Fp8Padding(torch.nn.Module):
    """Pads every expert's tokens."""

    def __init__(self, num_gemms: int) -> None:
        super().__init__()

    def forward(self, x: Tensor, m_splits: list[int]) -> tuple[Tensor, list[int]]:
        splits = _padded(m_splits)
        parts = [
            torch.nn.functional.pad(part, (0, 0, 0, size - len(part)))
            for part, size in zip(x.split(m_splits), splits, strict=True)
        ]
        return torch.cat(parts), splits


class Fp8Unpadding(torch.nn.Module):
    """Takes the padding away."""

    def __init__(self, num_gemms: int) -> None:
        super().__init__()

    def forward(self, x: Tensor, m_splits: list[int]) -> Tensor:
        parts = x.split(_padded(m_splits))
        return torch.cat([part[:count] for part, count in zip(parts, m_splits, strict=True)])
