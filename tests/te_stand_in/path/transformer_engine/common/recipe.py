"""The recipes' names and arguments."""

import enum
from dataclasses import dataclass
from typing import Any


class Format(enum.Enum):
    """FP8 formats."""

    E4M3 = "e4m3"
    HYBRID = "hybrid"


@dataclass
class Recipe:
    """What all recipes have."""

    fp8_format: Format = Format.HYBRID
    fp8_dpa: bool = False
    fp8_mha: bool = False


@dataclass
class DelayedScaling(Recipe):
    """Scales of earlier passes."""

    margin: int = 0
    amax_history_len: int = 1024
    amax_compute_algo: str = "max"
    override_linear_precision: tuple = (False, False, False)
    params_dtype: Any = None
    device: Any = None


@dataclass
class Float8CurrentScaling(Recipe):
    """One scale per tensor."""


@dataclass
class Float8BlockScaling(Recipe):
    """One scale per 128 values, or per 128 x 128 of weights."""

    fp8_format: Format = Format.E4M3


@dataclass
class MXFP8BlockScaling(Recipe):
    """One scale per 32 values."""

    fp8_format: Format = Format.E4M3
