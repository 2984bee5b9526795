"""``megatron-srpo memory`` on banks made here; search by skill with the real measure."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_srpo.cli import main
from megatron_srpo.commands.memory import printable
from megatron_srpo.config.loader import load_config, to_yaml
from megatron_srpo.config.self_play import SelfPlayConfig
from megatron_srpo.selfplay.memory import MemoryBank
from tests.selfplay.banks import bank_of, entries, random_rows, remembered

QUESTIONS = [
    "A farmer has 12 apples and buys 5 apples. How many apples does he have now?",
    "What is the remainder when 47 is divided by 6?",
    "Find the greatest common divisor of 84 and 36.",
]


def output(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["memory", *arguments]) == 0
    return capsys.readouterr().out


def as_json(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(output([*arguments, "--json"], capsys))


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["memory", *arguments]) == 2
    return capsys.readouterr().err


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A self-play with two iterations in its memory."""
    bank = MemoryBank.open(tmp_path / "memory", "by hand", 4)
    bank.append(1, entries(1, 25), random_rows(25, 4, seed=1))
    bank.append(2, entries(2, 3), random_rows(3, 4, seed=2))
    return tmp_path


# -------------------- show


def test_show_lists_the_first_entries_and_says_how_many_there_are(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = output(["show", str(folder)], capsys)
    assert "What is 1 times 19?" in text and "What is 1 times 20?" not in text
    assert "20 of 28 entries" in text


def test_show_one_iteration_with_code(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = output(["show", str(folder), "--iteration", "2", "--code"], capsys)
    assert "2/0" in text and "1/0" not in text and "def solver" in text and "3 of 3 entries" in text


def test_show_as_json_is_whole(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = as_json(["show", str(folder), "--limit", "2"], capsys)
    assert [row["id"] for row in rows] == ["1/0", "1/1"]
    assert set(rows[0]) == {"id", "iteration", "question", "label", "share", "code"}


def test_the_bank_may_be_named_itself(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert output(["show", str(folder / "memory")], capsys) == output(["show", str(folder)], capsys)


def test_an_iteration_that_is_not_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "has no iteration 3; it has: 1, 2" in refused(["show", str(folder), "--iteration", "3"], capsys)


def test_a_folder_without_a_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for action in (["show"], ["stats"], ["search"]):
        words = ["x"] if action == ["search"] else []
        assert "holds no memory (no memory/settings.json)" in refused(
            [*action, str(tmp_path), *words], capsys
        )


def test_an_empty_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    MemoryBank.open(tmp_path / "memory", "by hand", 4)
    assert output(["show", str(tmp_path)], capsys) == "0 of 0 entries\n"
    assert "0 entries of 0 iterations" in output(["stats", str(tmp_path)], capsys)
    assert "holds no entries yet" in refused(["search", str(tmp_path), "x"], capsys)


def test_hostile_text_stays_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = replace(remembered(1, 0, "\x1b[31mred\u202e [bold]x[/nonsense]\n\ud800"), label="\x07")
    MemoryBank.open(tmp_path, "m", 2).append(1, [bad], random_rows(1, 2))
    text = output(["show", str(tmp_path)], capsys)
    assert "\x1b" not in text and "\u202e" not in text and "\x07" not in text
    assert "[/nonsense]" in text.replace("\n", "") or "nonsense" in text
    assert as_json(["show", str(tmp_path)], capsys)[0]["question"] == bad.question


def test_control_characters_become_escapes() -> None:
    assert printable("a\tb\x1b\u202e\ud800\né") == "a\\tb\\x1b\\u202e\\ud800\né"


def test_a_reader_that_has_enough_is_no_error(tmp_path: Path) -> None:
    """More than a pipe holds; the reader takes one line and goes."""
    bank = MemoryBank.open(tmp_path / "memory", "m", 2)
    bank.append(1, entries(1, 3000), random_rows(3000, 2))
    words = ["memory", "show", str(tmp_path), "--limit", "3000", "--json"]
    command = [sys.executable, "-m", "megatron_srpo.cli", *words]
    shown = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert shown.stdout is not None and shown.stderr is not None
    shown.stdout.readline()
    shown.stdout.close()
    assert (shown.stderr.read(), shown.wait()) == ("", 0)
    shown.stderr.close()


# -------------------- search


def test_search_for_a_text_without_a_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = as_json(["search", str(folder), "TIMES 2?", "--text"], capsys)
    assert [row["id"] for row in rows] == ["1/2", "2/2"]
    text = output(["search", str(folder), "1 times", "--text", "--top", "3"], capsys)
    assert "3 of 25 questions that contain the text" in text


def test_a_text_that_looks_like_an_override_stays_where_it_is(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = output(["search", "--text", str(folder), "x=3"], capsys)
    assert text == "0 of 0 questions that contain the text\n"


def self_play_with_skills(root: Path) -> None:
    """A self-play's config and memory, measured by rules and hashing."""
    from megatron_srpo.selfplay.skill.measure import open_skill_measure

    overrides = [
        f"output_dir={root}",
        "challenger.model.path=challenger",
        "solver.model.path=solver",
        "challenger.algorithm.name=grpo",
        "skill.embedder.kind=hashing",
    ]
    config = load_config(SelfPlayConfig, None, overrides)
    (root / "config.yaml").write_text(to_yaml(config))
    measure = open_skill_measure(config)
    skills = measure.measure(QUESTIONS)
    bank = MemoryBank.open(root / "memory", measure.name, measure.dimension)
    kept = [replace(remembered(1, k, text), code=skills[k].code) for k, text in enumerate(QUESTIONS)]
    bank.append(1, kept, np.stack([skill.vector_D for skill in skills]))
    measure.close()


def test_search_by_skill_finds_the_same_skill_in_other_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    self_play_with_skills(tmp_path)
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    asked = "What is the remainder when 100 is divided by 7?"
    found = as_json(["search", str(tmp_path), asked, "--top", "2"], capsys)
    assert found["nearest"][0]["question"] == QUESTIONS[1]
    assert found["nearest"][0]["cosine"] > 0.99 > found["nearest"][1]["cosine"]
    assert len(found["nearest"]) == 2 and "def solver" in found["code"]
    text = output(["search", str(tmp_path), asked], capsys)
    assert text.startswith("measured as:\ndef solver") and "nearest of 3 entries, by " in text
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before


def test_search_with_another_measure_than_the_memorys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    self_play_with_skills(tmp_path)
    settings = json.loads((tmp_path / "memory" / "settings.json").read_text())
    (tmp_path / "memory" / "settings.json").write_text(json.dumps({**settings, "name": "another"}))
    message = refused(["search", str(tmp_path), "x"], capsys)
    assert "measures skills by " in message and "holds vectors of 'another'" in message


def test_search_without_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bank_of(tmp_path / "memory", [[1, 0]])
    message = refused(["search", str(tmp_path), "x"], capsys)
    assert "config.yaml is not there" in message and "search with --text" in message


# -------------------- stats


def test_stats_as_text_and_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = output(["stats", str(folder)], capsys)
    for words in (
        "28 entries of 2 iterations",
        "vectors: 4 numbers, by by hand",
        "repeated questions: 0; repeated code: 0",
        "nearest",
        "  0.3-0.4        6  ████████████████████████████████████████",
    ):
        assert words in text, words
    tree = as_json(["stats", str(folder)], capsys)
    assert [row["entries"] for row in tree["iterations"]] == [25, 3]
    assert tree["iterations"][0]["earlier_mean"] is None
    assert -1 <= tree["iterations"][1]["earlier_mean"] <= tree["iterations"][1]["earlier_max"] <= 1
    assert sum(tree["shares"]) == 28


# -------------------- help


def test_help_shows_how(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in [
        (["--help"], ["memory search runs/self-play"]),
        (["memory", "--help"], ["show | search | stats", "memory search runs/self-play", "output_dir"]),
        (["memory", "search", "--help"], ["FOLDER", "TEXT", "--top K", "--text", "--json", "--code"]),
        (["memory", "show", "--help"], ["--iteration N", "--limit N"]),
    ]:
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
        text = capsys.readouterr().out
        assert all(word in text for word in words), text
