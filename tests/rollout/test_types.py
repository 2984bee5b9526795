"""Requests and sampling parameters refuse values that no engine could serve."""

import pytest

from megatron_srpo.errors import EngineError
from megatron_srpo.rollout.types import MAX_SEED, Completion, Request, SamplingParams, VersionSpan


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


def make_completion(*spans: tuple[int, int], tokens: int = 4) -> Completion:
    covered = tuple(VersionSpan(*span) for span in spans)
    return Completion("x", (1,) * tokens, (-0.5,) * tokens, "stop", covered)


@pytest.mark.parametrize(("spans", "oldest"), [([(3, 4)], 3), ([(0, 1), (2, 3)], 0), ([(5, 2), (5, 2)], 5)])
def test_a_completion_is_as_old_as_its_oldest_token(spans: list[tuple[int, int]], oldest: int) -> None:
    assert make_completion(*spans).weight_version == oldest


@pytest.mark.parametrize(
    ("spans", "named"),
    [
        ([], "cover 0 of 4 tokens"),
        ([(1, 3)], "cover 3 of 4 tokens"),
        ([(1, 3), (2, 2)], "cover 5 of 4 tokens"),
        ([(2, 1), (1, 3)], r"'x': weight versions fall: \[2, 1\]"),
    ],
)
def test_a_completion_refuses_spans_that_do_not_fit(spans: list[tuple[int, int]], named: str) -> None:
    with pytest.raises(EngineError, match=named):
        make_completion(*spans)


def test_an_empty_response_has_a_version_too() -> None:
    assert make_completion((7, 0), tokens=0).weight_version == 7
