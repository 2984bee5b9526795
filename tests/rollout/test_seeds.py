"""Seeds and counter-based uniforms, against pure-Python references."""

import hashlib

import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_srpo.rollout.seeds import request_seed, uniforms
from megatron_srpo.rollout.types import MAX_SEED

MASK = 2**64 - 1


def splitmix64_finaliser(x: int) -> int:
    """The published finaliser, in Python's unbounded integers."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


def reference_uniform(seed: int, position: int) -> float:
    state = splitmix64_finaliser(seed) + (position + 1) * 0x9E3779B97F4A7C15 & MASK
    return (splitmix64_finaliser(state) >> 11) / 2**53


def test_finaliser_of_the_reference_is_splitmix64() -> None:
    # First two outputs of the public-domain splitmix64.c for seed 1234567: guards the reference itself.
    outputs = [splitmix64_finaliser(1234567 + n * 0x9E3779B97F4A7C15 & MASK) for n in (1, 2)]
    assert outputs == [6457827717110365317, 3203168211198807973]


@given(st.lists(st.integers(0, MAX_SEED), min_size=1, max_size=8), st.integers(0, 2**40))
def test_uniforms_equal_the_reference_exactly(seeds: list[int], position: int) -> None:
    found = uniforms(torch.tensor(seeds), position)
    assert found.dtype == torch.float64
    assert found.tolist() == [reference_uniform(seed, position) for seed in seeds]


def test_uniforms_look_uniform_and_independent() -> None:
    """20000 draws: mean, variance and neighbour correlations within five standard deviations."""
    seeds = torch.tensor([request_seed(0, "train", 0, prompt, 0) for prompt in range(200)])
    draws = torch.stack([uniforms(seeds, position) for position in range(100)], dim=1) - 0.5
    count = draws.numel()
    assert abs(draws.mean()) < 5 * (1 / 12 / count) ** 0.5
    assert abs(draws.pow(2).mean() - 1 / 12) < 5 * (1 / 180 / count) ** 0.5
    for left, right in ((draws[:, 1:], draws[:, :-1]), (draws[1:], draws[:-1])):
        assert abs((left * right).mean()) < 5 / 12 / (left.numel()) ** 0.5


def test_consecutive_seeds_share_no_number() -> None:
    draws = torch.cat([uniforms(torch.arange(1000), position) for position in range(5)])
    assert len(set(draws.tolist())) == 5000


def test_request_seed_is_the_documented_hash() -> None:
    text = b'[7, "train", 3, 12, 5]'
    digest = hashlib.blake2b(text, digest_size=8, person=b"srpo-request").digest()
    assert request_seed(7, "train", 3, 12, 5) == int.from_bytes(digest, "big") // 2


def test_request_seed_is_pinned() -> None:
    # A change of this number would change every recorded run.
    assert request_seed(0, "train", 0, 0, 0) == 376586076604693638


places = st.tuples(
    st.integers(0, 99), st.sampled_from(["train", "evaluation/gcd"]), *[st.integers(0, 99)] * 3
)


@given(places, places)
def test_request_seeds_differ_exactly_when_places_do(left: tuple, right: tuple) -> None:
    assert (request_seed(*left) == request_seed(*right)) == (left == right)
    assert 0 <= request_seed(*left) <= MAX_SEED
