"""Requests and sampling parameters refuse values that no engine could serve."""

import pytest

from megatron_srpo.errors import EngineError
from megatron_srpo.rollout.types import MAX_SEED, Request, SamplingParams


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ((-0.1, 1.0, 4), "temperature = -0.1"),
        ((float("nan"), 1.0, 4), "temperature = nan"),
        ((float("inf"), 1.0, 4), "temperature = inf"),
        ((1.0, 0.0, 4), "top_p = 0.0"),
        ((1.0, 1.5, 4), "top_p = 1.5"),
        ((1.0, 1.0, 0), "max_new_tokens = 0"),
    ],
)
def test_sampling_params_refuse(values: tuple[float, float, int], named: str) -> None:
    with pytest.raises(EngineError, match=named):
        SamplingParams(*values)


def test_sampling_params_accept_the_edges() -> None:
    assert SamplingParams(0.0, 1.0, 1).temperature == 0.0


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1])
def test_request_refuses_a_seed_outside_63_bits(seed: int) -> None:
    with pytest.raises(EngineError, match=f"'x'.*seed = {seed}"):
        Request("x", (1,), seed)


def test_request_accepts_the_largest_seed() -> None:
    assert Request("x", (1,), MAX_SEED).seed == 2**63 - 1
