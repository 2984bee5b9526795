"""rollouts.jsonl: samples round trip, bad ones are refused, and the choice of samples shows every route."""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_srpo.errors import DataError
from megatron_srpo.report.samples import ROUTES, RolloutSample, SamplesFile, pick_samples, read_samples
from tests.report.synthetic import sample


def test_samples_round_trip(tmp_path: Path) -> None:
    samples = [sample(step, index) for step in (1, 2) for index in range(4)]
    file = SamplesFile(tmp_path / "rollouts.jsonl")
    file.append(samples[:4])
    file.append(samples[4:])
    assert list(read_samples(tmp_path / "rollouts.jsonl")) == samples


def test_policy_route_has_null_weights_in_the_file(tmp_path: Path) -> None:
    SamplesFile(tmp_path / "rollouts.jsonl").append([sample(1, 0), sample(1, 1)])
    policy, distill = (json.loads(line) for line in (tmp_path / "rollouts.jsonl").read_text().splitlines())
    assert (policy["route"], policy["weights"]) == ("policy", None)
    assert (distill["route"], len(distill["weights"])) == ("distill", len(distill["tokens"]))


def test_rewind_drops_whole_steps(tmp_path: Path) -> None:
    file = SamplesFile(tmp_path / "rollouts.jsonl")
    for step in (1, 2, 3):
        file.append([sample(step, index) for index in range(3)])
    assert file.rewind(2) == 3
    assert [s.step for s in read_samples(tmp_path / "rollouts.jsonl")] == [1, 1, 1, 2, 2, 2]
    assert file.rewind(0) == 6
    assert list(read_samples(tmp_path / "rollouts.jsonl")) == []


def test_an_earlier_step_is_refused(tmp_path: Path) -> None:
    file = SamplesFile(tmp_path / "rollouts.jsonl")
    file.append([sample(2, 0)])
    with pytest.raises(DataError, match="already holds step 2, so step 1"):
        file.append([sample(1, 0)])


def test_unknown_route_is_refused() -> None:
    with pytest.raises(ValueError, match=r"route = 'teacher'; choose one of policy, distill, dropped"):
        dataclasses.replace(sample(1, 0), route="teacher")


@pytest.mark.parametrize("field", ["weights", "teacher_entropy"])
def test_per_token_lists_must_fit_the_tokens(field: str) -> None:
    with pytest.raises(ValueError, match=rf"{field} of gcd/11 has 1 values for 7 tokens"):
        dataclasses.replace(sample(1, 1), **cast(Any, {field: (1.0,)}))


@pytest.mark.parametrize("change", [{"colour": "red"}, {"route": "elsewhere"}, {"weights": [1.0]}])
def test_a_line_that_is_no_sample_is_named(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "rollouts.jsonl"
    record = {**dataclasses.asdict(sample(7, 0)), **change}
    path.write_text(json.dumps(record) + "\n")
    with pytest.raises(DataError, match=r"rollouts\.jsonl, step 7: not a rollout sample"):
        list(read_samples(path))


@given(st.lists(st.sampled_from(ROUTES), max_size=40), st.integers(0, 10), st.integers(0, 5))
def test_pick_is_a_repeatable_choice_without_repeats(routes: list[str], count: int, seed: int) -> None:
    picked = pick_samples(routes, count, seed)
    assert picked == pick_samples(routes, count, seed)
    assert picked == sorted(set(picked))
    assert len(picked) == min(count, len(routes))
    assert all(0 <= index < len(routes) for index in picked)


@given(st.lists(st.sampled_from(ROUTES), min_size=1, max_size=40), st.integers(3, 10), st.integers(0, 5))
def test_pick_shows_every_route_and_shares_evenly(routes: list[str], count: int, seed: int) -> None:
    there = Counter(routes)
    shown = Counter(routes[index] for index in pick_samples(routes, count, seed))
    assert set(shown) == set(there)
    # No route gets two more than another one that still had rollouts left.
    for route in there:
        if shown[route] < there[route]:
            assert max(shown.values()) - shown[route] <= 1


def test_pick_depends_on_the_seed() -> None:
    assert len({tuple(pick_samples(["policy"] * 50, 3, seed)) for seed in range(10)}) > 1


def test_defaults_are_those_of_a_policy_rollout() -> None:
    plain = RolloutSample(
        step=1, prompt_id="a", source="s", prompt="p", tokens=("x",), route="policy", reward=1.0
    )
    assert (plain.weights, plain.teacher_entropy, plain.advantage, plain.finish_reason) == (
        None,
        None,
        None,
        "stop",
    )
