"""From published files to scores from the pool: loading, extraction and verifiers together."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_srpo.config.data import DataConfig, SourceConfig
from megatron_srpo.config.reward import RewardConfig
from megatron_srpo.data.sampler import PromptSampler
from megatron_srpo.data.sources import load_prompts, load_source, mixture_weights
from megatron_srpo.rewards.pool import RewardPool


@pytest.fixture(scope="module")
def pool() -> Iterator[RewardPool]:
    with RewardPool(RewardConfig(workers=2, environment_feedback=True)) as running:
        yield running


def column(path: Path, name: str) -> list[str]:
    return [json.loads(line)[name] for line in path.read_text().splitlines()]


def test_gsm8k_worked_solutions_score_one_and_shifted_ones_zero(shared_data: Path, pool: RewardPool) -> None:
    path = shared_data / "math/gsm8k_test.jsonl"
    source = SourceConfig(
        kind="jsonl", path=str(path), task="math", prompt_column="question", answer_pattern="#### (.+)"
    )
    prompts, report = load_source(source, "refuse")
    assert (report.kept, report.bad) == (1319, 0)
    worked = [text.replace("#### ", "The final answer is ") for text in column(path, "answer")]
    right = pool.score(list(zip(prompts, worked, strict=True)))
    assert all(score.value == 1.0 for score in right)
    shifted = pool.score(list(zip(prompts, worked[1:] + worked[:1], strict=True)))
    golds = [prompt.answer for prompt in prompts]
    expected = [float(gold == other) for gold, other in zip(golds, golds[1:] + golds[:1], strict=True)]
    assert [score.value for score in shifted] == expected
    assert {score.feedback for score in shifted} == {None, "The final answer is wrong."}


def test_a_mixture_of_all_kinds_of_sources_trains_and_scores(
    shared_data: Path, pool: RewardPool, tmp_path: Path
) -> None:
    chemistry = str(shared_data / "sciknoweval/chemistry/train.jsonl")
    math500 = str(shared_data / "math/math500.jsonl")
    config = DataConfig(
        train=(
            SourceConfig(kind="reasoning_gym", family="gcd", size=50, weight=2.0),
            SourceConfig(
                kind="jsonl",
                path=chemistry,
                name="chemistry",
                task="multiple_choice",
                system_column="system",
                weight=1.0,
            ),
            SourceConfig(kind="jsonl", path=math500, task="math", prompt_column="problem", weight=1.0),
        ),
        eval=(SourceConfig(kind="reasoning_gym", family="gcd", name="gcd_test", seed=1, size=20),),
    )
    sets = load_prompts(config)
    batch = PromptSampler(sets.train, 0, weights=mixture_weights(config)).batch(0, 32)
    sources = [prompt.source for prompt in batch]
    assert (sources.count("gcd"), sources.count("chemistry"), sources.count("math500")) == (16, 8, 8)
    scores = pool.score([(prompt, f"<answer>{prompt.answer}</answer>") for prompt in batch])
    assert [score.value for score in scores] == [1.0] * 32
    silent = pool.score([(prompt, "<think>I am lost") for prompt in batch])
    assert all(score.value == 0.0 and score.error is None and score.feedback for score in silent)
