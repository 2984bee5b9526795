"""Reading back the folder of a self-play: rows joined by iteration, and files in any state."""

import json
from pathlib import Path

import pytest

from megatron_srpo.errors import DataError
from megatron_srpo.report.self_play_data import (
    DIVERSITY_VERSION,
    finite,
    is_self_play,
    load_self_play,
    read_rows,
)
from tests.selfplay.made_up import row, write_lines


def test_accuracy_before_the_first_iteration_is_step_zero(tmp_path: Path) -> None:
    write_lines(tmp_path / "iterations.jsonl", [row(1, 0.3), row(2, 0.2)])
    run = load_self_play(tmp_path).run
    assert run.series("heldout") == ([0, 1, 2], pytest.approx([0.25, 0.3, 0.35]))
    assert run.series("heldout/sums") == ([0, 1, 2], pytest.approx([0.35, 0.4, 0.45]))
    assert run.series("pool/valid")[0] == [1, 2]


def test_without_the_first_iteration_there_is_no_step_zero(tmp_path: Path) -> None:
    write_lines(tmp_path / "iterations.jsonl", [row(2, 0.2)])
    assert load_self_play(tmp_path).run.series("heldout")[0] == [2]


def test_diversity_joins_the_rows_of_its_iteration(tmp_path: Path) -> None:
    """An iteration that has not finished yet may have been measured already."""
    write_lines(tmp_path / "iterations.jsonl", [row(1, 0.3)])
    measured = [{"iteration": 1, "skill/clusters": 5}, {"iteration": 2, "recurrence/near": 0.5}]
    tree = {"version": DIVERSITY_VERSION, "iterations": measured, "notes": ["a note"]}
    (tmp_path / "diversity.json").write_text(json.dumps(tree))
    data = load_self_play(tmp_path)
    assert data.run.series("skill/clusters") == ([1], [5.0])
    assert data.run.series("recurrence/near") == ([2], [0.5])
    assert "a note" in data.run.notes


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 0}', "\x00"])
def test_a_damaged_diversity_is_a_note(tmp_path: Path, text: str) -> None:
    write_lines(tmp_path / "iterations.jsonl", [row(1, 0.3)])
    (tmp_path / "diversity.json").write_text(text)
    data = load_self_play(tmp_path)
    assert data.diversity == {} and data.run.series("heldout")[0] == [0, 1]
    assert any("diversity.json is damaged or of another version" in note for note in data.run.notes)


def test_rows_that_are_none_are_left_out(tmp_path: Path) -> None:
    rows = [{"iteration": True}, {"iteration": 0}, {"pool/valid": 1}, {"iteration": 2, "a": "x", "b": 1e999}]
    write_lines(tmp_path / "iterations.jsonl", [*rows, row(1, 0.1)])
    run = load_self_play(tmp_path).run
    assert [one["step"] for one in run.rows] == [0, 1, 2]
    assert run.series("a") == run.series("b") == ([], [])


def test_a_torn_last_line_is_no_note(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": 2')
    assert read_rows(path) == ([{"a": 1}], ())
    path.write_text('{"a": 1}\n{"a": 2\n' + "[" * 100_000 + "\n\n{}")
    rows, notes = read_rows(path)
    assert rows == [{"a": 1}, {}]
    assert notes == ("rows.jsonl: line 2 is not a JSON object; 3 such left out.",)
    assert read_rows(tmp_path / "absent") == ([], ())


def test_rows_of_nearest_that_lack_something_are_left_out(tmp_path: Path) -> None:
    texts = {name: "x" for name in ("id", "question", "code", "old_id", "old_question", "old_code")}
    good = {**texts, "iteration": 2, "old_iteration": 1, "cosine": 0.5, "bleu": 0.1}
    bad = [{**good, "question": None}, {**good, "cosine": "1"}, {**good, "iteration": 2.5}, {}]
    write_lines(tmp_path / "iterations.jsonl", [row(1, 0.3)])
    write_lines(tmp_path / "nearest.jsonl", [*bad, good])
    assert load_self_play(tmp_path).nearest == [good]


def test_what_is_a_self_play(tmp_path: Path) -> None:
    assert not is_self_play(tmp_path) and not is_self_play(tmp_path / "absent")
    (tmp_path / "iteration_x").mkdir()
    assert not is_self_play(tmp_path)
    (tmp_path / "iteration_01").mkdir()
    assert is_self_play(tmp_path)
    (tmp_path / "iteration_10").mkdir()
    (tmp_path / "iteration_2").mkdir()
    assert list(load_self_play(tmp_path).folders) == [1, 2, 10]


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"give its output_dir \(iterations\.jsonl\)"):
        load_self_play(tmp_path)


@pytest.mark.parametrize(
    ("value", "number"), [(1, 1.0), (0.5, 0.5), (True, None), ("1", None), (None, None), (float("nan"), None)]
)
def test_numbers(value: object, number: float | None) -> None:
    assert finite(value) == number
