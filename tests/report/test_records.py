"""The JSON-lines files: what a kill leaves behind, going back to a step, and what is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_srpo.errors import DataError
from megatron_srpo.report.records import RecordFile, read_records


def _steps(path: Path) -> list[int]:
    return [record["step"] for record in read_records(path)]


def _filled(path: Path, steps: range) -> RecordFile:
    file = RecordFile(path)
    for step in steps:
        file.append([{"step": step, "text": "x" * step}])
    return file


def test_lines_are_json_objects_with_sorted_keys(tmp_path: Path) -> None:
    RecordFile(tmp_path / "r.jsonl").append([{"step": 1, "b": 2, "a": "é"}])
    assert (tmp_path / "r.jsonl").read_bytes() == b'{"a": "\\u00e9", "b": 2, "step": 1}\n'


def test_a_lone_surrogate_from_a_tokenizer_round_trips(tmp_path: Path) -> None:
    RecordFile(tmp_path / "r.jsonl").append([{"step": 1, "text": "\ud83d broken \u2028 \x00"}])
    assert next(read_records(tmp_path / "r.jsonl"))["text"] == "\ud83d broken \u2028 \x00"


def test_missing_file_has_no_records(tmp_path: Path) -> None:
    assert list(read_records(tmp_path / "none.jsonl")) == []
    assert RecordFile(tmp_path / "none.jsonl").last_step is None
    assert not (tmp_path / "none.jsonl").exists()


def test_every_torn_end_is_survived(tmp_path: Path) -> None:
    """Cut the file after every single byte: readers see the whole lines, a new writer goes on behind them."""
    whole = tmp_path / "whole.jsonl"
    _filled(whole, range(1, 5))
    content, torn = whole.read_bytes(), tmp_path / "torn.jsonl"
    for cut in range(len(content) + 1):
        torn.write_bytes(content[:cut])
        # A line is complete once its closing brace is there; the newline itself may be missing.
        complete = list(range(1, 1 + content[:cut].count(b"}")))
        assert _steps(torn) == complete
        file = RecordFile(torn)
        assert file.last_step == (complete[-1] if complete else None)
        file.append([{"step": 9}])
        assert _steps(torn) == [*complete, 9]
        assert torn.read_bytes().endswith(b'\n{"step": 9}\n' if complete else b'{"step": 9}\n')


def test_zeros_after_a_power_cut_count_as_a_torn_line(tmp_path: Path) -> None:
    _filled(tmp_path / "r.jsonl", range(1, 3))
    with (tmp_path / "r.jsonl").open("ab") as file:
        file.write(b"\x00" * 64)
    assert _steps(tmp_path / "r.jsonl") == [1, 2]


def test_damage_in_the_middle_is_an_error_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(DataError, match=r"r\.jsonl line 2 .*remove that line"):
        list(read_records(path))
    with pytest.raises(DataError, match="line 2"):
        RecordFile(path)
    assert path.read_text().count("\n") == 3, "a damaged file must stay as it was found"


@pytest.mark.parametrize("line", ["[1, 2]", "3", '{"a": 1}', '{"step": 1.5}', '{"step": true}', ""])
def test_lines_without_an_integer_step_are_damage(tmp_path: Path, line: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(f'{line}\n{{"step": 3}}\n')
    with pytest.raises(DataError, match="line 1"):
        list(read_records(path))


@given(steps=st.lists(st.integers(0, 12), max_size=12).map(sorted), back=st.integers(-1, 13))
@settings(max_examples=60, deadline=None)
def test_rewind_keeps_exactly_the_steps_up_to_the_given_one(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], back: int
) -> None:
    path = tmp_path_factory.mktemp("rewind") / "r.jsonl"
    file = RecordFile(path)
    file.append({"step": step} for step in steps)
    kept = [step for step in steps if step <= back]
    assert file.rewind(back) == len(steps) - len(kept)
    assert _steps(path) == kept
    assert file.last_step == (kept[-1] if kept else None)


def test_rewind_then_append_equals_never_having_gone_further(tmp_path: Path) -> None:
    straight = _filled(tmp_path / "straight.jsonl", range(1, 8))
    resumed = _filled(tmp_path / "resumed.jsonl", range(1, 6))
    with resumed.path.open("ab") as file:
        file.write(b'{"step": 6, "te')
    again = RecordFile(resumed.path)
    assert again.rewind(3) == 2
    for step in range(4, 8):
        again.append([{"step": step, "text": "x" * step}])
    assert resumed.path.read_bytes() == straight.path.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["resumed.jsonl", "straight.jsonl"]


def test_rewind_replaces_the_file_in_one_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the machine dies before the rename, the old file is still whole."""
    file = _filled(tmp_path / "r.jsonl", range(1, 6))
    before = file.path.read_bytes()

    def die(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        file.rewind(2)
    monkeypatch.undo()
    assert file.path.read_bytes() == before
    assert RecordFile(file.path).last_step == 5


def test_nothing_to_drop_leaves_the_file_itself_alone(tmp_path: Path) -> None:
    file = _filled(tmp_path / "r.jsonl", range(1, 4))
    inode = file.path.stat().st_ino
    assert file.rewind(3) == 0
    assert RecordFile(file.path).path.stat().st_ino == inode


def test_a_step_that_goes_back_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    file = _filled(tmp_path / "r.jsonl", range(1, 4))
    before = file.path.read_bytes()
    with pytest.raises(DataError, match=r"already holds step 4, so step 2 .*--resume"):
        file.append([{"step": 4}, {"step": 2}])
    assert file.path.read_bytes() == before
    assert file.last_step == 3
    file.append([{"step": 3}])  # several records of one step are fine here


def test_one_per_step_refuses_the_same_step_twice(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "r.jsonl", one_per_step=True)
    file.append([{"step": 0}])
    with pytest.raises(DataError, match="already holds step 0, so step 0"):
        file.append([{"step": 0}])


def test_not_finite_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        RecordFile(tmp_path / "r.jsonl").append([{"step": 1, "x": float("nan")}])


_WRITER = """
import sys
from megatron_srpo.report.records import RecordFile
file = RecordFile(sys.argv[1])
for step in range(1, 10**9):
    file.append([{"step": step, "text": "y" * 5000}])
"""


def test_kill_minus_nine_in_the_middle_of_writing(tmp_path: Path) -> None:
    """A real process, really killed: what it had written is a gapless prefix and can be gone on with."""
    path = tmp_path / "r.jsonl"
    writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(path)])
    try:
        deadline = time.monotonic() + 60
        while (not path.exists() or path.stat().st_size < 100_000) and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        os.kill(writer.pid, signal.SIGKILL)
    assert writer.wait() == -signal.SIGKILL
    steps = _steps(path)
    assert len(steps) > 15
    assert steps == list(range(1, len(steps) + 1))
    file = RecordFile(path)
    file.append([{"step": steps[-1] + 1}])
    for line in path.read_text().splitlines():
        json.loads(line)
