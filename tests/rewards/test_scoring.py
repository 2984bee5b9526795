from typing import Any

import pytest

from megatron_srpo.config.reward import RewardConfig
from megatron_srpo.rewards.registry import Verifier
from megatron_srpo.rewards.scoring import score_response, too_long
from megatron_srpo.rewards.types import Score
from tests.data.helpers import prompt


def run(result: Any, **fields: Any) -> Score:
    return score_response(Verifier(lambda *_: result), prompt(), "x", RewardConfig(**fields))


@pytest.mark.parametrize(
    ("raw", "binary", "value"),
    [
        (0.995, True, 1.0),
        (0.99, True, 1.0),
        (0.98, True, 0.0),
        (0.5, False, 0.5),
        (True, False, 1.0),
        (-0.5, False, -0.5),
    ],
)
def test_threshold(raw: float, binary: bool, value: float) -> None:
    assert run(raw, binary=binary) == Score(value)
    assert run(Score(raw), binary=binary) == Score(value)


def test_feedback_is_handed_on_only_when_asked_for() -> None:
    assert run(Score(0.0, feedback="no")) == Score(0.0)
    assert run(Score(0.0, feedback="no"), environment_feedback=True) == Score(0.0, feedback="no")


@pytest.mark.parametrize("raw", [float("nan"), float("inf"), Score(float("nan"))])
def test_values_that_are_no_numbers_are_errors(raw: Any) -> None:
    score = run(raw, binary=False)
    assert score.value == 0.0
    assert score.error is not None
    assert score.error.startswith("the verifier returned ")


@pytest.mark.parametrize("raw", ["right", None, [1.0]])
def test_results_that_are_no_scores_are_errors(raw: Any) -> None:
    score = run(raw)
    assert score.value == 0.0
    assert score.error is not None


def test_long_error_texts_are_cut() -> None:
    def verify(*_: Any) -> float:
        raise ValueError("x" * 10_000)

    error = score_response(Verifier(verify), prompt(), "x", RewardConfig()).error
    assert error is not None
    assert len(error) == 300
    assert error.startswith("ValueError: xxx")


def test_too_long_responses_are_refused_by_length_alone() -> None:
    config = RewardConfig(max_answer_characters=10)
    assert too_long("x" * 10, config) is None
    refused = too_long("x" * 11, config)
    assert refused is not None
    assert refused.error == "the response has 11 characters; the most is reward.max_answer_characters = 10"
