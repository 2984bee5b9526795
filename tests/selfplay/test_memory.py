"""The memory bank on disk: what it gives back, what it refuses, and what a kill leaves."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from megatron_srpo.errors import DataError
from megatron_srpo.selfplay.memory import MemoryBank
from tests.selfplay.banks import bank_of, entries, random_rows, remembered, unit_rows

FILES = ("entries.jsonl", "vectors.f32", "iterations.jsonl")


def filled(folder: Path, sizes: tuple[int, ...] = (4, 0, 3), dimension: int = 5) -> MemoryBank:
    """A bank with an iteration of each size."""
    bank = MemoryBank.open(folder, "coder+embedder", dimension)
    for iteration, size in enumerate(sizes, start=1):
        bank.append(iteration, entries(iteration, size), random_rows(size, dimension, seed=iteration))
    return bank


def state(bank: MemoryBank) -> tuple[list[int], list[object], list[list[float]]]:
    view = bank.everything()
    return bank.iterations, list(view.entries), view.vectors.tolist()


# -------------------- what it gives back


def test_a_new_bank_is_empty(tmp_path: Path) -> None:
    bank = MemoryBank.open(tmp_path / "new", "m", 3)
    assert (len(bank), bank.iterations, list(bank.everything().entries)) == (0, [], [])
    assert bank.everything().vectors.shape == (0, 3)


def test_entries_and_vectors_come_back_as_they_were(tmp_path: Path) -> None:
    written = filled(tmp_path)
    bank = MemoryBank.open(tmp_path, "coder+embedder", 5)
    assert state(bank) == state(written)
    assert bank.iterations == [1, 2, 3]
    assert bank.everything().entries == entries(1, 4) + entries(3, 3)
    expected = np.concatenate([random_rows(4, 5, seed=1), random_rows(3, 5, seed=3)])
    np.testing.assert_array_equal(bank.everything().vectors, expected)


@pytest.mark.parametrize(("iteration", "count"), [(1, 0), (2, 4), (3, 4), (4, 7), (99, 7)])
def test_before_is_what_earlier_iterations_left(tmp_path: Path, iteration: int, count: int) -> None:
    view = filled(tmp_path).before(iteration)
    assert len(view) == len(view.entries) == len(view.vectors) == count
    assert all(entry.iteration < iteration for entry in view.entries)


def test_a_view_stays_as_it_was(tmp_path: Path) -> None:
    bank = filled(tmp_path)
    reader = MemoryBank.read(tmp_path)
    view = bank.everything()
    bank.append(4, entries(4, 2), random_rows(2, 5))
    assert len(view) == len(view.entries) == len(reader.everything().entries) == 7
    assert len(bank.everything()) == len(MemoryBank.read(tmp_path)) == 9


def test_writing_to_vectors_changes_no_file(tmp_path: Path) -> None:
    bank = filled(tmp_path)
    before = (tmp_path / "vectors.f32").read_bytes()
    bank.everything().vectors[0, 0] = 7
    assert (tmp_path / "vectors.f32").read_bytes() == before


def test_texts_of_all_kinds_survive(tmp_path: Path) -> None:
    texts = ["line\nbreak\r\u2028\x85", "\ud800 lone", "\x00 nul", "∑ é 数"]
    kept = [remembered(1, number, text) for number, text in enumerate(texts)]
    MemoryBank.open(tmp_path, "m", 2).append(1, kept, random_rows(4, 2))
    assert MemoryBank.read(tmp_path).everything().entries == kept


# -------------------- likeness and replay


def test_similarity_by_hand(tmp_path: Path) -> None:
    view = bank_of(tmp_path, [[1, 0, 0], [0, 1, 0], [0, 1, 0]]).everything()
    found = view.similarity(unit_rows([[0.6, 0.8, 0], [1, 0, 0], [0, 0, 1]]))
    np.testing.assert_allclose(found.max_N, [0.8, 1, 0], atol=1e-6)
    np.testing.assert_allclose(found.mean_N, [(0.6 + 0.8 + 0.8) / 3, 1 / 3, 0], atol=1e-7)
    assert found.nearest_N[1] == 0 and found.nearest_N[0] in (1, 2)


def test_an_empty_memory_is_like_nothing(tmp_path: Path) -> None:
    found = MemoryBank.open(tmp_path, "m", 2).everything().similarity(unit_rows([[1, 0], [0, 1]]))
    assert (found.max_N.tolist(), found.mean_N.tolist(), found.nearest_N.tolist()) == (
        [0, 0],
        [0, 0],
        [-1, -1],
    )


def test_no_question_to_compare(tmp_path: Path) -> None:
    assert len(filled(tmp_path).everything().similarity(np.zeros((0, 5))).max_N) == 0


def test_comparing_warns_of_nothing(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        filled(tmp_path).everything().similarity(random_rows(2, 5))


def test_vectors_of_another_length_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"shape \(2, 4\) .* which have 5 numbers"):
        filled(tmp_path).everything().similarity(random_rows(2, 4))


def test_replay_is_drawn_without_replacement_and_by_seed(tmp_path: Path) -> None:
    view = filled(tmp_path, sizes=(40,)).everything()
    drawn = view.sample(15, seed=3)
    assert len({entry.id for entry in drawn}) == 15
    assert drawn != view.sample(15, seed=4)
    assert drawn == MemoryBank.open(tmp_path, "coder+embedder", 5).before(2).sample(15, seed=3)


def test_replay_of_more_than_there_is(tmp_path: Path) -> None:
    view = filled(tmp_path, sizes=(5,)).everything()
    assert sorted(entry.id for entry in view.sample(9, seed=1)) == [f"1/{k}" for k in range(5)]
    assert view.sample(0, seed=1) == []


def test_replay_is_uniform(tmp_path: Path) -> None:
    """Each of 10 entries in 3 of 10 draws: 1200 draws of 4000, standard deviation 29."""
    view = filled(tmp_path, sizes=(10,)).everything()
    drawn = [entry.id for seed in range(4000) for entry in view.sample(3, seed)]
    assert all(abs(drawn.count(f"1/{k}") - 1200) < 5 * 29 for k in range(10))


def test_the_drawn_entries_are_fixed_for_all_time(tmp_path: Path) -> None:
    """Another library's or Python's version must not draw others in the middle of a self-play."""
    drawn = filled(tmp_path, sizes=(20,)).everything().sample(5, seed=7)
    assert [entry.id for entry in drawn] == ["1/12", "1/17", "1/15", "1/3", "1/11"]


# -------------------- appending


def test_the_same_iteration_again_does_nothing(tmp_path: Path) -> None:
    bank = filled(tmp_path)
    before = [(tmp_path / name).read_bytes() for name in FILES]
    bank.append(1, entries(1, 4), random_rows(4, 5, seed=1))
    MemoryBank.open(tmp_path, "coder+embedder", 5).append(2, [], np.zeros((0, 5)))
    assert [(tmp_path / name).read_bytes() for name in FILES] == before


@pytest.mark.parametrize("size", [0, 3, 5])
def test_the_same_iteration_with_others_is_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(DataError, match=f"holds iteration 1 with 4 entries that are not these {size}"):
        filled(tmp_path).append(1, entries(1, size), random_rows(size, 5))


def test_another_label_under_a_known_id_is_refused(tmp_path: Path) -> None:
    changed = [*entries(3, 2), remembered(3, 2, "another question")]
    with pytest.raises(DataError, match="not these 3; another self-play ran in this folder"):
        filled(tmp_path).append(3, changed, random_rows(3, 5, seed=3))


def test_going_back_is_refused(tmp_path: Path) -> None:
    bank = MemoryBank.open(tmp_path, "m", 2)
    bank.append(3, entries(3, 1), random_rows(1, 2))
    with pytest.raises(DataError, match="already holds iteration 3, so 2 cannot be added"):
        bank.append(2, entries(2, 1), random_rows(1, 2))


def test_ids_are_new(tmp_path: Path) -> None:
    bank = MemoryBank.open(tmp_path, "m", 2)
    with pytest.raises(DataError, match="already holds an entry '1/0'; ids"):
        bank.append(1, [remembered(1, 0), remembered(1, 0)], random_rows(2, 2))
    assert len(MemoryBank.read(tmp_path)) == 0


def test_entries_and_vectors_must_go_together(tmp_path: Path) -> None:
    bank = MemoryBank.open(tmp_path, "m", 3)
    for count, shape in [(2, (1, 3)), (1, (1, 4)), (1, (3,))]:
        with pytest.raises(DataError, match=f"{count} memory entries of 3 numbers each"):
            bank.append(1, entries(1, count), np.ones(shape) / np.sqrt(3))
    with pytest.raises(DataError, match=r"'2/0' has iteration 2 .* must be of iteration 1"):
        bank.append(1, entries(2, 1), random_rows(1, 3))


@pytest.mark.parametrize(
    ("row", "length"), [([2.0, 0.0], "2.0"), ([0.0, 0.0], "0.0"), ([np.nan, 1.0], "nan")]
)
def test_vectors_that_are_not_of_unit_length_are_refused(
    tmp_path: Path, row: list[float], length: str
) -> None:
    with pytest.raises(DataError, match=f"entry '1/0' has length {length}, not 1"):
        MemoryBank.open(tmp_path, "m", 2).append(1, entries(1, 1), np.array([row]))


def test_a_share_that_is_none_is_refused(tmp_path: Path) -> None:
    bad = remembered(1, 0).__class__("1/0", 1, "q", "a", float("nan"), "c")
    with pytest.raises(DataError, match="share nan"):
        MemoryBank.open(tmp_path, "m", 2).append(1, [bad], random_rows(1, 2))


# -------------------- kills


def test_a_kill_at_any_byte_leaves_an_iteration_whole_or_absent(tmp_path: Path) -> None:
    """Every state of the files between two iterations: written in their order, each cut at many bytes."""
    filled(tmp_path / "old", sizes=(2,))
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    wanted = state(filled(tmp_path / "new", sizes=(2, 2)))
    old = {name: (tmp_path / "old" / name).read_bytes() for name in FILES}
    new = {name: (tmp_path / "new" / name).read_bytes() for name in FILES}
    seen = set()
    for number, name in enumerate(["vectors.f32", "entries.jsonl", "iterations.jsonl"]):
        for size in {*range(len(old[name]), len(new[name]), 7), len(new[name]) - 1, len(new[name])}:
            folder = tmp_path / "killed"
            shutil.copytree(tmp_path / "old", folder)
            for whole in ["vectors.f32", "entries.jsonl"][:number]:
                (folder / whole).write_bytes(new[whole])
            (folder / name).write_bytes(new[name][:size])
            bank = MemoryBank.open(folder, "coder+embedder", 5)
            seen.add(tuple(bank.iterations))
            assert len(bank.everything().entries) == len(bank) == 2 * len(bank.iterations)
            bank.append(2, entries(2, 2), random_rows(2, 5, seed=2))
            assert state(MemoryBank.read(folder)) == wanted
            # A last line whose line break alone was cut off is whole.
            assert {name: (folder / name).read_bytes().rstrip(b"\n") for name in FILES} == {
                name: content.rstrip(b"\n") for name, content in new.items()
            }
            shutil.rmtree(folder)
    assert seen == {(1,), (1, 2)}


WRITER = """
import sys
from pathlib import Path
from tests.selfplay.test_memory import filled
print("ready", flush=True)
filled(Path(sys.argv[1]), sizes=(50,) * 60, dimension=64)
"""


@pytest.mark.parametrize("kilobytes", [3, 200])
def test_a_killed_writer_is_taken_up_where_it_stopped(tmp_path: Path, kilobytes: int) -> None:
    """A real process, killed while it writes, as soon as its text has grown to some size."""
    folder = tmp_path / "bank"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE)
    text = folder / "entries.jsonl"
    while writer.poll() is None and not (text.exists() and text.stat().st_size > kilobytes * 1000):
        time.sleep(0.001)
    writer.kill()
    writer.communicate()
    assert writer.returncode == -9, "it had finished: nothing was tested"
    found = MemoryBank.read(folder)
    assert 0 < len(found.iterations) + 1 < 60 and len(found) == 50 * len(found.iterations)
    taken_up = filled(folder, sizes=(50,) * 60, dimension=64)
    assert state(taken_up) == state(filled(tmp_path / "whole", sizes=(50,) * 60, dimension=64))


def test_a_reader_beside_a_writer_cuts_nothing_off(tmp_path: Path) -> None:
    """Opening reads only: what another process is just writing stays."""
    filled(tmp_path)
    for name in FILES:
        with (tmp_path / name).open("ab") as file:
            file.write(b"half written")
    before = [(tmp_path / name).read_bytes() for name in FILES]
    assert len(MemoryBank.open(tmp_path, "coder+embedder", 5).everything().entries) == 7
    assert [(tmp_path / name).read_bytes() for name in FILES] == before


# -------------------- what does not fit


@pytest.mark.parametrize(("name", "dimension"), [("other", 5), ("coder+embedder", 6)])
def test_vectors_of_another_measure_are_refused_by_name(tmp_path: Path, name: str, dimension: int) -> None:
    filled(tmp_path)
    message = (
        rf"vectors of 'coder\+embedder' with 5 numbers; those of '{re.escape(name)}' with {dimension} .*: set"
    )
    with pytest.raises(DataError, match=message):
        MemoryBank.open(tmp_path, name, dimension)


def test_a_folder_without_a_bank(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no memory bank \(no settings.json\)"):
        MemoryBank.read(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"format": 1}', '{"format": 1, "name": "m", "dimension": "x"}']
)
def test_damaged_settings(tmp_path: Path, content: str) -> None:
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(DataError, match=r"settings.json is damaged .*put it back"):
        MemoryBank.open(tmp_path, "m", 3)


def test_another_format(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text('{"format": 2, "name": "m", "dimension": 3}')
    with pytest.raises(DataError, match="has format 2, this version reads 1"):
        MemoryBank.read(tmp_path)


@pytest.mark.parametrize("name", ["entries.jsonl", "vectors.f32"])
def test_files_cut_short_or_gone(tmp_path: Path, name: str) -> None:
    filled(tmp_path)
    size = (tmp_path / name).stat().st_size
    os.truncate(tmp_path / name, size - 1)
    with pytest.raises(DataError, match=rf"{name} is damaged \({size - 1} bytes where {size} were written"):
        MemoryBank.read(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=rf"{name} is damaged \(0 bytes"):
        MemoryBank.read(tmp_path)


@pytest.mark.parametrize("line", ["nonsense", "{}", '{"id": 1}', "[1]"])
def test_a_line_that_is_no_entry(tmp_path: Path, line: str) -> None:
    filled(tmp_path)
    path = tmp_path / "entries.jsonl"
    lines = path.read_text().splitlines()
    lines[1] = line + " " * (len(lines[1]) - len(line))
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"entries.jsonl is damaged \(line 2"):
        _ = MemoryBank.read(tmp_path).everything().entries


def test_an_iteration_that_does_not_say_where_it_ends(tmp_path: Path) -> None:
    filled(tmp_path)
    path = tmp_path / "iterations.jsonl"
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps({**json.loads(first), "entries": None}), *rest]) + "\n")
    with pytest.raises(DataError, match="iteration 1 does not say where it ends"):
        MemoryBank.read(tmp_path)
