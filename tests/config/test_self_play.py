"""Self-play's configuration: R-Diverse by default, R-Zero and ablations by switches, nonsense refused."""

from pathlib import Path
from typing import Any

import pytest

from megatron_srpo.config.loader import build, load_config, to_yaml
from megatron_srpo.config.self_play import ChallengerRewardConfig, SelfPlayConfig
from megatron_srpo.errors import ConfigError
from tests.selfplay.plays import example


def tree(**keys: Any) -> dict[str, Any]:
    run = {"model": {"path": "m"}, "algorithm": {"name": "grpo"}}
    return {"challenger": dict(run), "solver": dict(run), **keys}


def test_the_defaults_are_r_diverses() -> None:
    config = build(SelfPlayConfig, tree())
    reward = config.reward
    assert (reward.uncertainty, reward.repetition, reward.memory) == ("min", "skill", True)
    assert (config.votes.low, config.votes.high, config.votes.samples) == (0.3, 0.8, 10)
    assert (config.replay, config.pool.questions, config.iterations) == (0.3, 8000, 5)


@pytest.mark.parametrize("name", ["r_zero", "r_diverse"])
def test_the_examples_survive_writing_and_reading(name: str, tmp_path: Path) -> None:
    config = load_config(SelfPlayConfig, example(name))
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_config(SelfPlayConfig, tmp_path / "config.yaml") == config


def test_the_lowest_reward_is_that_of_the_formula() -> None:
    # All votes alike, one cluster of the whole batch, the very question in memory: 0 - 1 - 0.25 - 0.375.
    assert ChallengerRewardConfig().lowest == -1.625
    assert ChallengerRewardConfig(memory=False, malformed=-1.5).lowest == -1.0
    assert ChallengerRewardConfig(repetition="off", memory=False, malformed=-0.5).lowest == 0.0
    assert ChallengerRewardConfig(floor_at_zero=True, malformed=-1.0).lowest == 0.0


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"reward": {"malformed": -1.625}}, "malformed"),
        ({"reward": {"malformed": 0.0, "floor_at_zero": True}}, "malformed"),
        ({"votes": {"low": 0.9, "high": 0.8}}, "low = 0.9"),
        ({"votes": {"top_p": 0.0}}, "top_p"),
        ({"skill": {"coder": {"kind": "off"}}}, "reward.repetition=skill"),
        ({"skill": {"coder": {"kind": "off"}}, "reward": {"repetition": "bleu"}}, "reward.memory"),
        (
            {"skill": {"coder": {"kind": "off"}}, "reward": {"repetition": "bleu", "memory": False}},
            "replay=0.3",
        ),
        ({"skill": {"coder": {"kind": "model"}}}, "skill.coder"),
        ({"skill": {"coder": {"kind": "rule_based", "path": "m"}}}, "path has no meaning"),
        ({"replay": 1.0}, "replay"),
        ({"reward": {"repetiton": "off"}}, "did you mean 'repetition'"),
    ],
)
def test_what_cannot_be_meant_is_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build(SelfPlayConfig, tree(**keys))


@pytest.mark.parametrize(
    ("role", "keys", "said"),
    [
        ("solver", {"data": {"train": [{"kind": "jsonl", "path": "x", "task": "math"}]}}, "writes itself"),
        ("challenger", {"data": {"eval": [{"kind": "jsonl", "path": "x", "task": "math"}]}}, "nothing to be"),
        ("challenger", {"algorithm": {"name": "srpo"}}, "set it to grpo"),
        ("solver", {"reward": {"workers": 0}}, "workers = 0"),
        ("solver", {"rollout": {"engine": "sglang", "sglang": {"registry": "r"}}}, "registry"),
    ],
)
def test_runs_that_cannot_be_played_are_refused(role: str, keys: dict[str, Any], said: str) -> None:
    given = tree()
    given[role] = {**given[role], **keys}
    with pytest.raises(ConfigError, match=said):
        build(SelfPlayConfig, given)


def test_a_solver_may_learn_by_srpo() -> None:
    given = tree()
    given["solver"]["algorithm"] = {"name": "srpo"}
    assert build(SelfPlayConfig, given).solver.algorithm.name == "srpo"
