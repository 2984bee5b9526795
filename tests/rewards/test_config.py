from typing import Any

import pytest

from megatron_srpo.config.reward import RewardConfig
from megatron_srpo.errors import ConfigError


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"workers": -1}, "too small"),
        ({"time_limit_s": 0.0}, "positive number of seconds"),
        ({"time_limit_s": float("nan")}, "positive number of seconds"),
        ({"load_limit_s": float("inf")}, "positive number of seconds"),
        ({"threshold": 0.0}, "makes every answer right"),
        ({"threshold": 1.5}, "too large"),
        ({"max_answer_characters": 0}, "too small"),
        ({"max_worker_memory_mb": 10}, "too small"),
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RewardConfig(**fields)


def test_defaults_and_no_memory_limit() -> None:
    assert RewardConfig(max_worker_memory_mb=None).workers == 2
