"""The finaliser of splitmix64, on integers and on tensors: a hash of 64 bits.

Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
"""

import torch
from torch import Tensor

GOLDEN_GAMMA = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def mix(x_B: Tensor) -> Tensor:
    """Hash int64 numbers. Their products wrap around in torch, as the unsigned ones do."""
    x_B = (x_B ^ shift_right(x_B, 30)) * signed(_MIX_1)
    x_B = (x_B ^ shift_right(x_B, 27)) * signed(_MIX_2)
    return x_B ^ shift_right(x_B, 31)


def mix_integer(x: int) -> int:
    """Hash an unsigned 64-bit integer."""
    x = ((x ^ (x >> 30)) * _MIX_1) & MASK
    x = ((x ^ (x >> 27)) * _MIX_2) & MASK
    return x ^ (x >> 31)


def unit_interval(x_B: Tensor) -> Tensor:
    """Return the upper 53 bits of int64 numbers, read as unsigned, as float64 in [0, 1)."""
    return shift_right(x_B, 11).double() * 2.0**-53


def shift_right(x_B: Tensor, bits: int) -> Tensor:
    """Shift in zeros: torch's own ``>>`` copies the sign bit."""
    return torch.bitwise_and(x_B >> bits, (1 << (64 - bits)) - 1)


def signed(x: int) -> int:
    """Read an unsigned 64-bit integer as the int64 of the same bits."""
    return x - (1 << 64) if x >= 1 << 63 else x
