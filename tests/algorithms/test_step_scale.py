"""The optimizer step's scale: global denominator, and teacher-entropy weights of mean exactly 1."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_srpo.algorithms.types import TokenStreams
from megatron_srpo.algorithms.weights import aggregation_weights, entropy_weights
from tests.algorithms import reference
from tests.ranks import run_ranks

# Sums of float64 numbers, divided once.
EXACT = 1e-12

CASES: dict[str, tuple[str, float, str]] = {
    "mixed": ("PDDPXD", 1.0, "token_mean"),
    "no weighting": ("PDDPXD", 0.0, "token_mean"),
    "sharp": ("DDDDDD", 5.0, "token_mean"),
    "by sequence": ("PDDPXD", 1.0, "seq_mean_token_mean"),
    "policy only": ("PPPPPP", 1.0, "token_mean"),
    "one replica has nothing": ("DXPXDX", 1.0, "token_mean"),
    "nothing at all": ("XXXXXX", 1.0, "token_mean"),
}


def entropy_of(index: int) -> list[float]:
    return [0.3 * ((5 * index + 3 * place) % 11) for place in range(1 + index % 4)]


def stream(letter: str, index: int, beta: float, aggregation: str) -> TokenStreams:
    entropy_R = torch.tensor(entropy_of(index), dtype=torch.float64)
    ones_R = torch.ones_like(entropy_R)
    return TokenStreams(
        advantages=ones_R,
        policy_mask=ones_R * (letter == "P"),
        distill_mask=ones_R * (letter == "D"),
        distill_weights=entropy_weights(entropy_R, beta),
        importance_weights=ones_R,
        token_weights=aggregation_weights(len(ones_R), aggregation),
    )


def scales(rank: int, world: int) -> dict[str, Any]:
    """The scale of every case, its rollouts dealt out in turn to data-parallel replicas."""
    from megatron_srpo.model.parallel import initialize_parallel
    from megatron_srpo.training.trainer import step_scale

    groups = initialize_parallel(1, 1)
    result = {}
    for name, (letters, beta, aggregation) in CASES.items():
        mine = [
            stream(letters[index], index, beta, aggregation) for index in range(rank, len(letters), world)
        ]
        scale = step_scale(mine, groups)
        result[name] = scale.__dict__ if scale is not None else None
    return result


@pytest.fixture(scope="module")
def by_world() -> dict[int, list[dict[str, Any]]]:
    return {world: run_ranks(world, scales) for world in (1, 2)}


def expected(name: str) -> dict[str, float] | None:
    letters, beta, aggregation = CASES[name]
    kept = [index for index, letter in enumerate(letters) if letter != "X"]
    distilled = [entropy_of(index) for index, letter in enumerate(letters) if letter == "D"]
    if not kept:
        return None
    tokens = sum(len(entropy_of(index)) for index in kept)
    raw = [math.exp(-beta * value) for rollout in distilled for value in rollout]
    return {
        "denominator": float(tokens if aggregation == "token_mean" else len(kept)),
        "distill_scale": len(raw) / math.fsum(raw) if raw else 1.0,
        "largest_weight": max(max(w) for w in reference.normalised_weights(distilled, beta)) if raw else 0.0,
    }


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_the_scale_is_the_formulas_on_every_rank(
    by_world: dict[int, list[dict[str, Any]]], name: str, world: int
) -> None:
    want = expected(name)
    for got in by_world[world]:
        assert (got[name] is None) is (want is None)
        assert got[name] == (want and pytest.approx(want, rel=EXACT))


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "D" in case[0]])
def test_the_mean_weight_is_one_over_all_replicas(
    by_world: dict[int, list[dict[str, Any]]], name: str, world: int
) -> None:
    letters, beta, _ = CASES[name]
    scale = by_world[world][0][name]["distill_scale"]
    weights = [
        weight * scale
        for index, letter in enumerate(letters)
        if letter == "D"
        for weight in stream(letter, index, beta, "token_mean").distill_weights.tolist()
    ]
    assert math.fsum(weights) / len(weights) == pytest.approx(1.0, rel=EXACT)
    assert max(weights) == pytest.approx(by_world[world][0][name]["largest_weight"], rel=EXACT)


@pytest.mark.parametrize("world", [1, 2])
def test_beta_zero_scales_by_exactly_one(by_world: dict[int, list[dict[str, Any]]], world: int) -> None:
    scale = by_world[world][0]["no weighting"]
    assert (scale["distill_scale"], scale["largest_weight"]) == (1.0, 1.0)


def test_dropped_rollouts_are_not_counted(by_world: dict[int, list[dict[str, Any]]]) -> None:
    letters = CASES["mixed"][0]
    everyone = sum(len(entropy_of(index)) for index in range(len(letters)))
    assert by_world[1][0]["mixed"]["denominator"] == everyone - len(entropy_of(letters.index("X")))


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(0, 12), min_size=1, max_size=6), min_size=1, max_size=6), st.floats(0, 3))
def test_the_reference_weights_have_mean_one(rollouts: list[list[float]], beta: float) -> None:
    """Guards the comparison above: the reference itself obeys section 5."""
    weights = [weight for rollout in reference.normalised_weights(rollouts, beta) for weight in rollout]
    assert math.fsum(weights) / len(weights) == pytest.approx(1.0, rel=EXACT)
    if beta == 0:
        assert set(weights) == {1.0}
