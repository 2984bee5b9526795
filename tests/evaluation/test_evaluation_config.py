"""The evaluation section of the configuration."""

from typing import Any

import pytest

from megatron_srpo.config.evaluation import EvaluationConfig
from megatron_srpo.errors import ConfigError


def due(config: EvaluationConfig, last: int) -> list[int]:
    return [step for step in range(last + 1) if config.is_due(step, last)]


def test_defaults_are_the_papers() -> None:
    config = EvaluationConfig()
    assert (config.samples_per_prompt, config.temperature, config.top_p, config.every) == (16, 0.6, 0.95, 5)


def test_when_evaluation_is_due() -> None:
    assert due(EvaluationConfig(every=5), 12) == [0, 5, 10, 12]
    assert due(EvaluationConfig(every=0), 12) == [0, 12]
    assert due(EvaluationConfig(every=4, before=False, after=False), 12) == [4, 8, 12]
    assert due(EvaluationConfig(every=5, before=False, after=False), 12) == [5, 10]
    assert due(EvaluationConfig(every=0, before=False, after=False), 12) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("every", -1),
        ("samples_per_prompt", 0),
        ("pass_k", 0),
        ("pass_k", 17),
        ("temperature", -0.5),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("max_response_tokens", 0),
        ("max_prompts", 0),
    ],
)
def test_impossible_values_are_named(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"EvaluationConfig\.{key} = {value}"):
        EvaluationConfig(**{key: value})


def test_pass_k_may_equal_the_samples() -> None:
    assert EvaluationConfig(pass_k=16).pass_k == 16
