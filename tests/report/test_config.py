"""The report section of the configuration refuses what makes no sense."""

import pytest

from megatron_srpo.config.loader import build
from megatron_srpo.config.report import ReportConfig, WandbConfig, WatchConfig
from megatron_srpo.errors import ConfigError


def test_defaults_need_no_network_and_watch() -> None:
    config = ReportConfig()
    assert config.wandb.mode == "off"
    assert config.watch.enabled
    assert config.samples_every == 1


def test_a_yaml_tree_builds_the_section() -> None:
    tree = {"wandb": {"mode": "offline", "tags": ["a", "b"]}, "watch": {"window": 3}, "samples_per_step": 2}
    config = build(ReportConfig, tree)
    assert config.wandb.tags == ("a", "b") and config.watch.window == 3 and config.samples_per_step == 2


def test_unknown_wandb_mode_names_the_choices() -> None:
    with pytest.raises(
        ConfigError, match=r"WandbConfig\.mode = 'disabled'; choose one of off, offline, online"
    ):
        WandbConfig(mode="disabled")


def test_empty_project_is_refused() -> None:
    with pytest.raises(ConfigError, match="name a wandb project"):
        WandbConfig(project="")


def test_a_collapsed_response_is_also_a_short_one() -> None:
    with pytest.raises(ConfigError, match=r"short_fraction = 0\.4 is below length_fraction = 0\.5.*raise"):
        WatchConfig(short_fraction=0.4)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("window", 0),
        ("baseline_steps", 0),
        ("rearm_steps", 0),
        ("accuracy_drop", 1.5),
        ("entropy_minimum", -0.1),
    ],
)
def test_thresholds_out_of_range_are_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"{field} = {value}"):
        build(WatchConfig, {field: value})


def test_samples_every_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="samples_every"):
        ReportConfig(samples_every=0)
