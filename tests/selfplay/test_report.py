"""The report of a self-play from its files: whole, running, torn, damaged, and with nothing to measure."""

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_srpo.errors import DataError
from megatron_srpo.selfplay.report import write_diversity, write_self_play_report
from tests.selfplay.made_up import question, row, write_lines, write_pool, write_self_play

pytest.importorskip("sklearn", reason="needs the extra self-play")


def tree(folder: Path) -> dict[str, Any]:
    return dict(json.loads(write_diversity(folder).read_text()))


def test_the_files_hold_what_was_measured(tmp_path: Path) -> None:
    found = tree(write_self_play(tmp_path))
    assert [one["iteration"] for one in found["iterations"]] == [1, 2, 3]
    assert found["iterations"][2]["recurrence/near"] == 0.75
    assert found["iterations"][0]["text/distinct"] == 1.0
    assert found["recurrence"] == {"iterations": [1, 2, 3], "shares": [[1.0], [0.25, 1.0], [0.5, 0.75, 1.0]]}
    assert found["overlap"] == {"iterations": [1, 2, 3], "shares": [[1.0], [0.25, 1.0], [0.5, 0.5, 1.0]]}
    assert len(found["pairs"]) == 3 * 28 and found["notes"] == []
    rows = [json.loads(line) for line in (tmp_path / "nearest.jsonl").read_text().splitlines()]
    assert len(rows) == 16 and rows[0]["old_question"] == question(1, 0, 0).question


def test_the_verdict_is_computed_from_the_files(tmp_path: Path) -> None:
    falling = tree(write_self_play(tmp_path / "falling", penalties=(0.3, 0.2, 0.1)))["verdicts"][0]
    rising = tree(write_self_play(tmp_path / "rising", penalties=(0.1, 0.2, 0.3)))["verdicts"][0]
    assert (falling["illusion"], falling["state"], rising["state"]) == ("local", "present", "absent")
    assert "penalty (skill) from 0.2000 to 0.1000" in falling["text"]


def test_without_a_batch_penalty_there_is_nothing_to_compare(tmp_path: Path) -> None:
    folder = write_self_play(tmp_path, penalties=(0.0, 0.0, 0.0), reward={"repetition": "off"})
    assert tree(folder)["verdicts"][0]["state"] == "open"


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    write_self_play(tmp_path)
    names = ("diversity.json", "nearest.jsonl", "report.html")
    write_self_play_report(tmp_path)
    first = [(tmp_path / name).read_bytes() for name in names]
    write_self_play_report(tmp_path)
    assert [(tmp_path / name).read_bytes() for name in names] == first
    assert not [*tmp_path.glob("*.tmp"), *tmp_path.glob(".*.partial")]


def test_the_rewards_threshold_is_used(tmp_path: Path) -> None:
    folder = write_self_play(tmp_path, reward={"cluster_distance": 0.25})
    assert tree(folder)["limits"]["cluster_distance"] == 0.25


def test_without_a_memory_words_are_compared(tmp_path: Path) -> None:
    """``skill.coder.kind=off``; the third question repeats one of the first iteration but for its spaces."""
    write_pool(tmp_path, 1, [question(1, 0, 0), question(1, 1, 0)])
    repeated = question(1, 0, 0).question.replace(" ", "  ")
    rows = [{"id": "2/0", "question": repeated, "share": 0.5, "valid": True}]
    write_lines(tmp_path / "iteration_02" / "questions.jsonl", rows)
    found = tree(tmp_path)
    assert [one["questions"] for one in found["iterations"]] == [2, 1]
    assert found["iterations"][1]["text/recurrence"] == 1.0
    assert found["pairs"] == [] and (tmp_path / "nearest.jsonl").read_text() == ""
    page = write_self_play_report(tmp_path).read_text()
    assert "needs valid questions of two iterations, and skills" in page


def test_torn_and_damaged_lines_are_left_out(tmp_path: Path) -> None:
    write_self_play(tmp_path)
    with (tmp_path / "iterations.jsonl").open("a") as file:
        file.write('[]\n{"iteration": "four"}\n{"iteration": 4, "accura')
    pool = tmp_path / "iteration_02" / "questions.jsonl"
    pool.write_text("\x00\n" + pool.read_text() + '{"id": "2/9", "quest')
    page = write_self_play_report(tmp_path).read_text()
    assert "iterations.jsonl: line 4 is not a JSON object; 1 such left out." in page
    assert "iteration 2, questions.jsonl: line 1 is not a JSON object; 1 such left out." in page
    assert "0.250 → 0.400" in page


def test_a_damaged_memory_is_said(tmp_path: Path) -> None:
    write_self_play(tmp_path)
    (tmp_path / "memory" / "vectors.f32").write_bytes(b"short")
    page = write_self_play_report(tmp_path).read_text()
    assert "The questions were not measured anew: " in page and "vectors.f32" in page
    assert "0.250 → 0.400" in page


def test_an_earlier_measure_stays_where_a_new_one_fails(tmp_path: Path) -> None:
    write_self_play_report(write_self_play(tmp_path))
    (tmp_path / "memory" / "vectors.f32").write_bytes(b"short")
    page = write_self_play_report(tmp_path).read_text()
    assert "The questions were not measured anew: " in page and "25% → 75%" in page


@pytest.mark.parametrize("iterations", [1, 2])
def test_few_iterations(tmp_path: Path, iterations: int) -> None:
    plan = ({0: 4, 1: 4}, {0: 2, 2: 6})[:iterations]
    page = write_self_play_report(write_self_play(tmp_path, plan)).read_text()
    assert "of the 2 needed" in page


def test_an_iteration_without_a_valid_question(tmp_path: Path) -> None:
    page = write_self_play_report(write_self_play(tmp_path, ({0: 2}, {}, {0: 2}))).read_text()
    found = json.loads((tmp_path / "diversity.json").read_text())
    assert found["recurrence"] == {"iterations": [1, 3], "shares": [[1.0], [1.0, 1.0]]}
    assert "of 3</th>" in page


def test_the_first_iteration_still_running(tmp_path: Path) -> None:
    (tmp_path / "iteration_01" / "challenger").mkdir(parents=True)
    page = write_self_play_report(tmp_path).read_text()
    assert "No iteration has finished yet." in page


def test_rows_of_a_resumed_iteration_count_once(tmp_path: Path) -> None:
    write_self_play(tmp_path)
    again = {**row(3, 0.1), "accuracy/after": 0.9, "time/solver": float("nan")}
    with (tmp_path / "iterations.jsonl").open("a") as file:
        file.write(json.dumps(again) + "\n")
    page = write_self_play_report(tmp_path).read_text()
    assert "0.250 → 0.900" in page and "NaN" not in page


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not the folder of a self-play"):
        write_self_play_report(tmp_path)
    with pytest.raises(DataError, match="is not the folder of a self-play"):
        write_self_play_report(tmp_path / "absent")
    assert list(tmp_path.iterdir()) == [], "nothing is written there"
