"""Self-play through the real loop, from the small base model of the examples."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from megatron_srpo.config.self_play import SelfPlayConfig
from megatron_srpo.report.metrics import read_metrics
from megatron_srpo.report.records import read_records
from megatron_srpo.selfplay.memory import MemoryBank
from megatron_srpo.selfplay.runs import read_rows
from tests.ranks import run_ranks
from tests.selfplay.plays import small_play

PARTS = ("uncertainty", "repetition", "memory")


def play_ranks(rank: int, world: int, config: SelfPlayConfig) -> bool:
    from megatron_srpo.selfplay.iterations import play

    return play(config)


def finished(config: SelfPlayConfig, ranks: int) -> Path:
    assert all(run_ranks(ranks, play_ranks, config, timeout=900))
    return Path(config.output_dir)


@pytest.fixture(scope="module")
def diverse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """R-Diverse on two ranks that share a model: rank 0 asks the frozen models."""
    folder = tmp_path_factory.mktemp("plays") / "diverse"
    layouts = ("challenger.parallel.tensor=2", "solver.parallel.tensor=2")
    return finished(small_play("r_diverse", folder, *layouts), ranks=2)


@pytest.fixture(scope="module")
def zero(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """R-Zero on two replicas, without skills."""
    folder = tmp_path_factory.mktemp("plays") / "zero"
    return finished(small_play("r_zero", folder, "skill.coder.kind=off"), ranks=2)


def metrics(folder: Path, iteration: int, role: str) -> list[dict[str, Any]]:
    rows = read_metrics(folder / f"iteration_{iteration:02d}" / role / "metrics.jsonl")
    return [row for row in rows if row["step"]]


@pytest.mark.parametrize("name", ["diverse", "zero"])
def test_every_iteration_has_its_row(name: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name)
    rows = list(read_records(folder / "iterations.jsonl"))
    assert [row["iteration"] for row in rows] == [1, 2]
    for row in rows:
        assert row["pool/questions"] == 40
        assert 0 < row["pool/valid"] <= row["pool/wellformed"] <= 1
        assert 0 < row["labels/known"] <= 1
        assert row["challenger/repetition"] > 0
    assert "accuracy/before" in rows[0] and "accuracy/after" in rows[1]
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"
    assert "Iteration" in (folder / "report.html").read_text()


@pytest.mark.parametrize("name", ["diverse", "zero"])
def test_the_terms_add_up_to_the_reward_that_was_trained_on(
    name: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(name)
    for iteration in (1, 2):
        for row in metrics(folder, iteration, "challenger"):
            malformed = row["challenger/malformed"]
            floor = {"diverse": -2.0, "zero": -1.0}[name]
            mean = (1 - malformed) * row["challenger/reward"] + malformed * floor
            assert row["reward/mean"] == pytest.approx(mean, abs=1e-9)
            total = row["challenger/uncertainty"] - row["challenger/repetition"] - row["challenger/memory"]
            if name == "diverse":
                assert row["challenger/reward"] == pytest.approx(total, abs=1e-9)
            else:  # R-Zero raises each question's negative reward to 0
                assert row["challenger/reward"] >= max(0.0, total) - 1e-9


def test_the_memory_costs_from_the_second_iteration_on(diverse: Path) -> None:
    assert all(row["challenger/memory"] == 0 for row in metrics(diverse, 1, "challenger"))
    assert all(row["challenger/memory"] > 0 for row in metrics(diverse, 2, "challenger"))


def test_the_memory_holds_the_valid_questions(diverse: Path) -> None:
    bank = MemoryBank.read(diverse / "memory")
    for iteration in (1, 2):
        rows = read_rows(diverse / f"iteration_{iteration:02d}" / "questions.jsonl")
        valid = [(row["id"], row["question"], row["label"]) for row in rows if row["valid"]]
        kept = [entry for entry in bank.everything().entries if entry.iteration == iteration]
        assert [(entry.id, entry.question, entry.label) for entry in kept] == valid
        assert all("def solver" in entry.code for entry in kept if "?" in entry.question[-1:])


def test_the_solver_trains_on_new_and_old_questions(diverse: Path, zero: Path) -> None:
    first, second = (
        read_rows(diverse / f"iteration_{number:02d}" / "solver_prompts.jsonl") for number in (1, 2)
    )
    assert {row["iteration"] for row in first} == {1}
    old = [row for row in second if row["iteration"] == 1]
    new = len(second) - len(old)
    assert len(old) == min(len(first), round(new * 0.3 / 0.7))
    assert {row["id"]: row["answer"] for row in old}.items() <= {
        row["id"]: row["answer"] for row in first
    }.items()
    zeros = read_rows(zero / "iteration_02" / "solver_prompts.jsonl")
    assert {row["iteration"] for row in zeros} == {2}
    assert not (zero / "memory").exists()


@pytest.mark.parametrize("role", ["challenger", "solver"])
def test_a_role_goes_on_from_its_own_weights(diverse: Path, role: str) -> None:
    for iteration, model in ((1, "qwen3-self-play"), (2, f"iteration_01/{role}/model")):
        config = (diverse / f"iteration_{iteration:02d}" / role / "config.yaml").read_text()
        assert f"{model}\n" in config.split("model:")[1]
    one, two = (
        load_file(diverse / f"iteration_{number:02d}" / role / "model" / "model.safetensors")
        for number in (1, 2)
    )
    assert any(not one[name].equal(two[name]) for name in one)
    assert not (diverse / "iteration_01" / role / "checkpoints").exists()
    assert (diverse / "iteration_02" / role / "checkpoints").exists()


@pytest.mark.parametrize("name", ["diverse", "zero"])
def test_no_question_is_judged_twice_in_an_iteration(name: str, request: pytest.FixtureRequest) -> None:
    """The Challenger's training and the pool ask the same Solver."""
    folder = request.getfixturevalue(name)
    for iteration in (1, 2):
        path = folder / f"iteration_{iteration:02d}"
        judged = [
            item["question"]
            for record in read_records(path / "kept" / "votes.jsonl")
            for item in record["items"]
        ]
        assert len(judged) == len(set(judged))
        asked = {row["question"] for row in read_rows(path / "questions.jsonl")} - {None}
        assert asked < set(judged)  # the Challenger's training has asked others
