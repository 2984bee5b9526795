"""The script's command line, and the base model of self-play that the repository carries."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_srpo.selfplay.arithmetic_skills import FAMILIES
from tests.conftest import REPOSITORY
from tools import make_self_play_qwen3 as script
from tools.tiny_qwen3 import self_play_card as card
from tools.tiny_qwen3 import self_play_corpus as corpus
from tools.tiny_qwen3 import self_play_measure as measures
from tools.tiny_qwen3 import tokenizer
from tools.tiny_qwen3.self_play_measure import SAMPLES, Measured, Table, measure, solver_numbers, vote
from tools.tiny_qwen3.warm_up import Schedule

CARRIED = REPOSITORY / "examples" / "models" / "qwen3-self-play"
MEGABYTE = 2**20


@pytest.fixture(scope="module")
def recorded() -> Table:
    table: Table = json.loads((CARRIED / "measurements.json").read_text())
    return table


def test_folder_is_small_and_readable() -> None:
    weights = CARRIED / "model.safetensors"
    assert weights.stat().st_size <= 4 * MEGABYTE
    assert weights.stat().st_mode & 0o044 == 0o044
    model = AutoModelForCausalLM.from_pretrained(CARRIED, dtype=torch.float32)
    tokens = AutoTokenizer.from_pretrained(CARRIED)
    assert type(model).__name__ == "Qwen3ForCausalLM"
    assert len(tokens) <= model.config.vocab_size
    assert model.config.eos_token_id == tokens.eos_token_id
    assert model.config.num_key_value_heads % 2 == 0, "tensor parallelism 2"


def test_questions_are_short() -> None:
    tokens = AutoTokenizer.from_pretrained(CARRIED)
    lengths = [len(tokens.encode(question.text)) for question in corpus.held_out()]
    assert max(lengths) <= 40


def test_the_solver_has_something_to_learn(recorded: Table) -> None:
    """Skills from hardly known to well known; it is often unsure, and its majority is right more often."""
    solver = recorded["solver"]
    rates = {skill: solver[skill][f"avg@{SAMPLES}"] for skill in FAMILIES}
    assert min(rates.values()) < 0.2 and max(rates.values()) > 0.75
    assert sum(0.2 < rate < 0.75 for rate in rates.values()) >= 5
    assert 0.35 < solver["all"][f"avg@{SAMPLES}"] < 0.6
    assert solver["all"]["majority is right"] > solver["all"][f"avg@{SAMPLES}"] + 0.1
    assert solver["all"]["in the band"] > 0.4


def test_the_challenger_writes_well_formed_questions_of_skewed_skills(recorded: Table) -> None:
    challenger = recorded["challenger"]
    assert 0.9 < challenger["well-formed"] <= 1
    assert 0.5 < challenger["sentences of the grammar"] < 1
    assert challenger["in the band"] > 0.4
    assert 0.6 < challenger["label in the band is right"] < 0.9
    shares = [challenger[f"writes {skill}"] for skill in FAMILIES]
    assert sum(shares) == pytest.approx(1)
    assert max(shares) > 0.2
    assert sum(share < 0.05 for share in shares) >= 3


def test_carried_weights_are_the_measured_ones(recorded: Table) -> None:
    """A quarter of the questions anew. The standard error of 48 groups' mean is below 0.06; four of them."""
    found = solver_numbers(Measured.of(CARRIED), corpus.held_out()[::4])
    rate = f"avg@{SAMPLES}"
    assert found["all"]["questions"] == 48
    assert found["all"][rate] == pytest.approx(recorded["solver"]["all"][rate], abs=0.24)


def test_card_shows_the_recorded_tables_and_settings(recorded: Table) -> None:
    text = (CARRIED / "README.md").read_text()
    assert card.tables(recorded) in text
    found = re.search(r"```json\n(.*?)\n```", text, re.DOTALL)
    assert found is not None
    settings = [stage["warm-up"] for stage in json.loads(found[1])]
    assert settings == json.loads(json.dumps([vars(schedule) for schedule in script.SCHEDULES]))


def test_command_line_defaults_to_the_carried_folder() -> None:
    options = script.arguments([])
    assert (REPOSITORY / options.output).resolve() == CARRIED.resolve()
    assert (REPOSITORY / options.evaluation_set).is_file()


def test_a_wrong_tokenizer_folder_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--output", str(tmp_path / "model"), "--tokenizer", str(tmp_path)]
    assert script.main([*arguments, "--evaluation-set", str(tmp_path / "eval.jsonl")]) == 2
    assert "is missing" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_very_short_run_writes_a_folder_and_the_evaluation_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole script but the download: two steps, few samples, a tokenizer trimmed again."""
    monkeypatch.setattr(script, "SCHEDULES", (Schedule(steps=2, batch=4), Schedule(steps=1, batch=3)))
    monkeypatch.setattr(tokenizer, "verify", lambda folder: None)
    monkeypatch.setattr(corpus, "HELD_OUT_PER_SKILL", 1)
    monkeypatch.setattr(measures, "WRITTEN", 4)
    arguments = ["--output", str(tmp_path / "model"), "--tokenizer", str(CARRIED)]
    assert script.main([*arguments, "--evaluation-set", str(tmp_path / "eval.jsonl")]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eval.jsonl", "model"]
    AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert len((tmp_path / "eval.jsonl").read_text().splitlines()) == len(FAMILIES)
    table = json.loads((tmp_path / "model" / "measurements.json").read_text())
    assert table["challenger"]["well-formed"] == 0, "random weights write nothing"
    text = (tmp_path / "model" / "README.md").read_text()
    assert "1. 2 steps of 4, right work alone; " in text
    assert "1. 1 steps of 3, with slips; " in text
    capsys.readouterr()
    assert script.main(["--measure", str(tmp_path / "model")]) == 0
    assert capsys.readouterr().out.strip() == card.tables(measure(tmp_path / "model", corpus.held_out()))


def test_votes_by_hand() -> None:
    answers: list[Any] = ["3+4=7 \\boxed{7}", "\\boxed{8}", "\\boxed{7}", "no idea"]
    assert vote(answers) == (0.5, "7")
    assert vote(["?", ""]) == (0.0, None)
