"""Random numbers that depend on what is sampled, never on when, where or beside what it is sampled.

A request's seed is a hash of its place in the run (:func:`request_seed`); the uniform number that picks its
response token at one position is a hash of that seed and the position (:func:`uniforms`). No generator state
exists, so nothing has to be saved, and neither batch composition nor the number of ranks changes a response.
"""

import hashlib
import json

import torch
from torch import Tensor

# splitmix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def request_seed(run_seed: int, purpose: str, step: int, prompt_index: int, sample_index: int) -> int:
    """Return the seed of one request: 63 bits of BLAKE2b over the JSON list of the arguments.

    The value is part of a run's reproducibility: the same on every platform and Python version.

    Args:
        run_seed: seed of the whole run.
        purpose: what is sampled, e.g. "train" or "evaluation/gcd"; keeps the streams apart.
        step: training step.
        prompt_index: place of the prompt in its batch or set.
        sample_index: place of the sample in its prompt group.
    """
    place = json.dumps([run_seed, purpose, step, prompt_index, sample_index])
    digest = hashlib.blake2b(place.encode("utf-8"), digest_size=8, person=b"srpo-request").digest()
    return int.from_bytes(digest, "big") >> 1


def uniforms(seeds_B: Tensor, position: int) -> Tensor:
    """Return one float64 number in [0, 1) per row for the token at ``position``.

    The number is the upper 53 bits of ``mix(mix(seed) + (position + 1) * gamma)`` (splitmix64).

    Args:
        seeds_B: int64, request seeds.
        position: place of the token in its response, from 0.
    """
    step = (position + 1) * _GOLDEN_GAMMA % (1 << 64)
    state_B = _mix(seeds_B) + _signed(step)
    return _shift_right(_mix(state_B), 11).double() * 2.0**-53


def _mix(x_B: Tensor) -> Tensor:
    """Apply the finaliser of splitmix64. int64 products wrap around in torch, as the unsigned ones do."""
    x_B = (x_B ^ _shift_right(x_B, 30)) * _signed(_MIX_1)
    x_B = (x_B ^ _shift_right(x_B, 27)) * _signed(_MIX_2)
    return x_B ^ _shift_right(x_B, 31)


def _shift_right(x_B: Tensor, bits: int) -> Tensor:
    """Shift in zeros: torch's own ``>>`` copies the sign bit."""
    return torch.bitwise_and(x_B >> bits, (1 << (64 - bits)) - 1)


def _signed(constant: int) -> int:
    """Read an unsigned 64-bit constant as the int64 of the same bits."""
    return constant - (1 << 64) if constant >= 1 << 63 else constant
