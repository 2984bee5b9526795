"""The examples of self-play: they load, differ where their methods do, and evaluate on the small world."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_srpo.config.loader import load_config
from megatron_srpo.config.self_play import SelfPlayConfig
from megatron_srpo.selfplay.arithmetic import parse
from megatron_srpo.selfplay.arithmetic_skills import FAMILIES
from megatron_srpo.session.preflight import check_run
from tests.conftest import REPOSITORY
from tools.tiny_qwen3.self_play_corpus import CHALLENGER_PROMPT, held_out, write_evaluation_set

EXAMPLES = REPOSITORY / "examples" / "self_play"


@pytest.fixture
def diverse() -> SelfPlayConfig:
    return load_config(SelfPlayConfig, EXAMPLES / "r_diverse.yaml")


@pytest.fixture
def zero() -> SelfPlayConfig:
    return load_config(SelfPlayConfig, EXAMPLES / "r_zero.yaml")


def test_only_what_makes_the_method_differs(diverse: SelfPlayConfig, zero: SelfPlayConfig) -> None:
    assert replace(zero, output_dir=diverse.output_dir, reward=diverse.reward, replay=0.3) == diverse
    assert (zero.reward.repetition, zero.reward.memory, zero.reward.floor_at_zero) == ("bleu", False, True)
    assert (diverse.reward.repetition, diverse.reward.memory, diverse.reward.floor_at_zero) == (
        "skill",
        True,
        False,
    )
    assert (zero.replay, diverse.replay) == (0.0, 0.3)
    assert diverse.iterations >= 3


def test_the_model_was_taught_the_prompts(diverse: SelfPlayConfig) -> None:
    prompt = diverse.prompt
    assert prompt.challenger_user == CHALLENGER_PROMPT
    assert (prompt.challenger_system, prompt.solver_system, prompt.solver_suffix) == (None, None, "")


@pytest.mark.parametrize("name", ["r_diverse", "r_zero"])
def test_both_runs_pass_the_check_of_a_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    config = load_config(SelfPlayConfig, EXAMPLES / f"{name}.yaml")
    source = config.solver.data.eval
    for run in (config.challenger, config.solver):
        # An iteration writes the training data itself: here any file stands for it.
        check_run(replace(run, data=replace(run.data, train=source)), 1)


def test_truth_is_the_worlds(diverse: SelfPlayConfig) -> None:
    assert diverse.truth == f"{parse.__module__}:true_answer"


def test_evaluation_questions_are_the_held_out_ones(tmp_path: Path) -> None:
    write_evaluation_set(tmp_path / "eval.jsonl", held_out())
    assert (tmp_path / "eval.jsonl").read_text() == (EXAMPLES / "eval.jsonl").read_text()


def test_evaluation_is_balanced_over_skills_and_right() -> None:
    rows = [json.loads(line) for line in (EXAMPLES / "eval.jsonl").read_text().splitlines()]
    assert len(rows) == len({row["question"] for row in rows}) <= 200
    skills = [row["skill"] for row in rows]
    assert {skills.count(skill) for skill in FAMILIES} == {len(rows) // len(FAMILIES)}
    for row in rows:
        question = parse(row["question"])
        assert question is not None
        assert (question.skill, str(question.answer)) == (row["skill"], row["answer"])
