"""The rollout section of the configuration."""

from typing import Any

import pytest

from megatron_srpo.config.rollout import RolloutConfig
from megatron_srpo.config.sync import SyncConfig
from megatron_srpo.errors import ConfigError


def test_defaults_are_the_papers() -> None:
    config = RolloutConfig()
    assert (config.prompts_per_step, config.samples_per_prompt, config.temperature, config.top_p) == (
        32,
        8,
        1.0,
        1.0,
    )
    assert config.responses_per_step == 256
    assert config.engine == "local"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("engine", "vllm"),
        ("prompts_per_step", 0),
        ("samples_per_prompt", 0),
        ("temperature", 0.0),
        ("temperature", -1.0),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("max_response_tokens", 0),
        ("local_batch_size", 0),
        ("local_dtype", "float16"),
    ],
)
def test_impossible_values_are_named(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"RolloutConfig\.{key} = {value!r}"):
        RolloutConfig(**{key: value})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"max_staleness": 1}, r"max_staleness = 1 needs an engine beside the trainer"),
        ({"placement": "colocated"}, r"placement = 'colocated' needs rollout.engine=sglang"),
        ({"placement": "colocated", "engine": "sglang", "max_staleness": 1}, r"and max_staleness=0"),
    ],
)
def test_what_an_engine_cannot_do_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        RolloutConfig(**given)


def test_what_servers_can_do_is_allowed() -> None:
    assert RolloutConfig(engine="sglang", max_staleness=2).max_staleness == 2
    assert RolloutConfig(engine="sglang", placement="colocated").placement == "colocated"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("transport", "pigeon"),
        ("bucket_mib", 0),
        ("timeout_s", 0.5),
        ("verify_every", -1),
        ("in_flight", "lose"),
    ],
)
def test_impossible_synchronisation_is_named(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"SyncConfig\.{key} = {value!r}"):
        SyncConfig(**{key: value})
