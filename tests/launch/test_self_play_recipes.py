"""Self-play recipes resolve to the papers' settings, written out here a second time, in layouts that fit."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_srpo.config.base import Config
from megatron_srpo.config.loader import build, to_tree
from megatron_srpo.config.self_play import SelfPlayConfig
from megatron_srpo.errors import ConfigError
from megatron_srpo.launch.self_play_recipes import (
    SELF_PLAY_RECIPES,
    find_self_play_recipe,
    self_play_config,
)
from megatron_srpo.planner.shape import find_model
from megatron_srpo.session.preflight import check_run
from tests.launch.test_layouts import MOST_BYTES, planned, write_model
from tests.launch.test_papers import value

#: arXiv 2602.13103 and 2508.05004: the same for both roles and both methods.
TRAINING = {
    "model.dtype": "bfloat16",
    "algorithm.name": "grpo",
    "algorithm.policy.clip_low": 0.2,
    "algorithm.policy.clip_high": 0.3,
    "algorithm.policy.kl_coefficient": 1e-2,
    "algorithm.policy.normalize_by_std": True,
    "optimizer.learning_rate": 1e-6,
    "optimizer.weight_decay": 1e-2,
    "optimizer.schedule": "constant",
    "optimizer.warmup_steps": 0,
    "rollout.engine": "sglang",
    "rollout.temperature": 1.0,
    "rollout.top_p": 0.99,
    "rollout.prompts_per_step": 512,
    "rollout.max_response_tokens": 4096,
    "training.prompts_per_mini_batch": 128,
    "data.max_prompt_tokens": 2048,
}
ROLES = {
    "challenger": {"rollout.samples_per_prompt": 4, "training.steps": 5},
    "solver": {"rollout.samples_per_prompt": 5, "training.steps": 15},
}
BETWEEN = {
    "pool.questions": 8000,
    "votes.samples": 10,
    "votes.temperature": 1.0,
    "votes.top_p": 0.99,
    "votes.low": 0.3,
    "votes.high": 0.8,
    "reward.uncertainty": "min",
    "reward.repetition_weight": 1.0,
    "reward.cluster_distance": 0.5,
}
METHODS = {
    "r-diverse": {
        "iterations": 5,
        "replay": 0.3,
        "reward.repetition": "skill",
        "reward.memory": True,
        "reward.max_weight": 0.5,
        "reward.max_threshold": 0.5,
        "reward.mean_weight": 0.5,
        "reward.mean_threshold": 0.25,
        "reward.floor_at_zero": False,
        "skill.coder.kind": "model",
        "skill.coder.path": "models/Qwen2.5-Coder-7B-Instruct",
        "skill.embedder.kind": "sentence_transformers",
        "skill.embedder.model": "models/jina-code-embeddings-1.5b",
    },
    "r-zero": {
        "iterations": 3,
        "replay": 0.0,
        "reward.repetition": "bleu",
        "reward.memory": False,
        "reward.floor_at_zero": True,
        "skill.coder.kind": "off",
    },
}
MATHEMATICS = ["amc23", "minerva", "math500", "gsm8k", "olympiadbench", "aime24", "aime25"]


def settings(config: Config, keys: dict[str, object]) -> dict[str, object]:
    return {key: value(config, key) for key in keys}


@pytest.mark.parametrize("recipe", SELF_PLAY_RECIPES.values(), ids=lambda recipe: recipe.name)
def test_a_recipe_has_the_settings_of_its_paper(recipe) -> None:
    config = self_play_config(recipe.name)
    for role, own in ROLES.items():
        expected = {**TRAINING, **own, "model.path": f"models/Qwen3-{recipe.size.upper()}-Base"}
        assert settings(vars(config)[role], expected) == expected
    expected = {**BETWEEN, **METHODS[recipe.method], "output_dir": f"runs/{recipe.name}"}
    assert settings(config, expected) == expected


def test_there_are_two_methods_on_two_sizes() -> None:
    assert set(SELF_PLAY_RECIPES) == {
        "qwen3-4b-base-r-diverse",
        "qwen3-4b-base-r-zero",
        "qwen3-8b-base-r-diverse",
        "qwen3-8b-base-r-zero",
    }


def test_the_solver_is_tested_on_the_papers_mathematics() -> None:
    config = self_play_config("qwen3-4b-base-r-zero", data="sets")
    assert [source.label for source in config.solver.data.eval] == MATHEMATICS
    assert {source.task for source in config.solver.data.eval} == {"math"}
    assert config.solver.data.eval[2].path == "sets/math500/test.parquet"
    assert config.challenger.data.eval == ()


@pytest.mark.parametrize("name", SELF_PLAY_RECIPES)
def test_a_recipe_comes_back_from_plain_values(name: str) -> None:
    config = self_play_config(name)
    assert build(SelfPlayConfig, json.loads(json.dumps(to_tree(config)))) == config


def test_arguments_and_overrides() -> None:
    config = self_play_config(
        "qwen3-8b-base-r-zero",
        model="m",
        coder="c",
        embedder="e",
        output_dir="out",
        overrides=["pool.questions=80", "solver.training.steps=2", "challenger.rollout.top_p=1"],
    )
    assert config.challenger.model.path == config.solver.model.path == "m"
    assert (config.skill.coder.path, config.skill.embedder.model) == ("c", "e")
    assert config.output_dir == "out"
    assert (config.pool.questions, config.solver.training.steps) == (80, 2)
    assert (config.challenger.rollout.top_p, config.solver.rollout.top_p) == (1.0, 0.99)
    plain = self_play_config("qwen3-8b-base-r-zero")
    assert config.reward == plain.reward, "measured skills change no reward of R-Zero"


@pytest.mark.parametrize("name", SELF_PLAY_RECIPES)
@pytest.mark.parametrize("gpus", [2, 4, 8])
def test_layouts_fit_80_gb_and_pass_the_check_of_a_run(name: str, gpus: int, tmp_path: Path) -> None:
    """With longest prompts and responses and the reference of the KL penalty, by the planner."""
    shape = find_model(f"qwen3-{SELF_PLAY_RECIPES[name].size}")
    config = self_play_config(name, model=write_model(shape, tmp_path), gpus_per_node=gpus)
    for run in (config.challenger, config.solver):
        assert planned(run, shape, gpus)[0].memory.total <= MOST_BYTES
        # An iteration writes the training data itself: here any file stands for it.
        source = config.solver.data.eval[0]
        check_run(replace(run, data=replace(run.data, train=(source,))), gpus)
        served = run.rollout.sglang
        assert served.servers * served.tensor_parallel == gpus


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("qwen3-4b-base-r-diversity", {}, "did you mean qwen3-4b-base-r-diverse"),
        ("qwen3-8b-base-r-zero", {"gpus_per_node": 1}, "no layout of Qwen3 8b for 1 x 1 GPUs"),
        ("qwen3-4b-base-r-zero", {"overrides": ["solver.rollout.prompts_per_step=500"]}, "not a multiple of"),
        ("qwen3-4b-base-r-zero", {"overrides": ["pool.question=5"]}, "did you mean 'questions'"),
    ],
)
def test_refusals(name: str, arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        self_play_config(name, **arguments)


def test_a_name_finds_its_recipe() -> None:
    assert find_self_play_recipe("qwen3-8b-base-r-zero").default_model == "models/Qwen3-8B-Base"
