"""Random numbers that depend on what is sampled, never on when, where or beside what it is sampled.

A request's seed is a hash of its place in the run (:func:`request_seed`); the uniform number that picks its
response token at one position is a hash of that seed and the position (:func:`uniforms`). No generator state
exists, so nothing has to be saved, and neither batch composition nor the number of ranks changes a response.
"""

import hashlib
import json

from torch import Tensor

from megatron_srpo.splitmix import GOLDEN_GAMMA, MASK, mix, signed, unit_interval


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
    step = (position + 1) * GOLDEN_GAMMA & MASK
    return unit_interval(mix(mix(seeds_B) + signed(step)))
