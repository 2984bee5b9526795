"""The cache on disk: nothing saved is lost or computed again, whatever byte a kill left as the last."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from megatron_srpo.errors import DataError
from megatron_srpo.selfplay.skill.cache import CodeCache, VectorCache
from megatron_srpo.selfplay.skill.types import Rewrite

QUESTIONS = ["one?", "two?", "\u4e09?", "four\n?"]
REWRITES = [Rewrite("def solver():\n    return 1"), Rewrite(None, "no code"), Rewrite("\u00e9"), Rewrite("x")]


def rows(count: int, dimension: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)


def test_codes_come_back(tmp_path: Path) -> None:
    cache = CodeCache(tmp_path, "coder")
    cache.add(QUESTIONS[:2], REWRITES[:2])
    cache.add(QUESTIONS[2:], REWRITES[2:])
    assert len(cache) == 4
    again = CodeCache(tmp_path, "coder")
    assert [again.get(question) for question in QUESTIONS] == REWRITES
    assert again.get("five?") is None
    assert CodeCache(tmp_path, "another coder").get("one?") is None


def test_vectors_come_back_bit_for_bit_beside_those_of_others(tmp_path: Path) -> None:
    cache, other = VectorCache(tmp_path, "model"), VectorCache(tmp_path, "other")
    first, second, others = rows(2), rows(1, seed=1), rows(2, dimension=5, seed=2)
    cache.add(["a", "b"], first)
    other.add(["a", "x"], others)
    cache = VectorCache(tmp_path, "model")
    cache.add(["c"], second)
    for opened in (cache, VectorCache(tmp_path, "model")):
        found = [opened.get(text) for text in "abc"]
        assert np.array_equal(np.array(found), np.concatenate([first, second]))
        assert opened.get("x") is None and len(opened) == 3
    reopened = VectorCache(tmp_path, "other")
    assert np.array_equal(np.array([reopened.get("a"), reopened.get("x")]), others)


def test_saved_rows_do_not_change_with_the_array_that_they_came_from(tmp_path: Path) -> None:
    cache, given = VectorCache(tmp_path, "model"), rows(1)
    cache.add(["a"], given)
    before = given.copy()
    given[:] = 0
    assert np.array_equal(cache.get("a"), before[0])


def fill(folder: Path) -> list[tuple[dict[str, int], Sequence[str]]]:
    """Save three batches of each; return the files' sizes after each, and what was saved until then."""
    codes, vectors = CodeCache(folder, "coder"), VectorCache(folder, "model")
    states: list[tuple[dict[str, int], Sequence[str]]] = [({}, ())]
    for number in range(3):
        batch = [f"{number}/{place}" for place in range(2)]
        codes.add(batch, [Rewrite(text) for text in batch])
        vectors.add(batch, rows(2, seed=number))
        sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
        states.append((sizes, (*states[-1][1], *batch)))
    return states


@pytest.mark.parametrize("name", ["codes.jsonl", "vectors.jsonl"])
def test_a_record_cut_anywhere_loses_its_batch_alone(tmp_path: Path, name: str) -> None:
    """The rows of a lost record are cut off, and the batch can be added again."""
    states = fill(tmp_path)
    whole = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    first, last = states[2][0][name], states[3][0][name]
    for size in (first, first + 1, (first + last) // 2, last - 2, last - 1):
        for file, content in whole.items():
            (tmp_path / file).write_bytes(content[:size] if file == name else content)
        codes, vectors = CodeCache(tmp_path, "coder"), VectorCache(tmp_path, "model")
        cut = codes if name == "codes.jsonl" else vectors
        # The last byte is the line's end: without it, the record is whole.
        kept = states[3][1] if size == last - 1 else states[2][1]
        assert len(cut) == len(kept)
        assert all(cut.get(text) is not None for text in kept)
        if size == last - 2:
            codes.add(["2/0"], [Rewrite("2/0")])
            vectors.add(["2/0", "2/1"], rows(2, seed=2))
            assert np.array_equal(VectorCache(tmp_path, "model").get("2/1"), rows(2, seed=2)[1])


def test_rows_without_a_record_are_cut_off(tmp_path: Path) -> None:
    """A kill between the rows and the record that speaks of them."""
    cache = VectorCache(tmp_path, "model")
    cache.add(["a"], rows(1))
    (path,) = tmp_path.glob("*.f32")
    whole = path.read_bytes()
    for extra in range(1, 24):
        path.write_bytes(whole + b"\x7f" * extra)
        reopened = VectorCache(tmp_path, "model")
        assert path.read_bytes() == whole
        assert np.array_equal(reopened.get("a"), rows(1)[0])


def test_rows_without_any_record_are_cut_off(tmp_path: Path) -> None:
    VectorCache(tmp_path, "model").add(["a"], rows(1))
    (tmp_path / "vectors.jsonl").unlink()
    cache = VectorCache(tmp_path, "model")
    cache.add(["b"], rows(1, seed=5))
    assert np.array_equal(VectorCache(tmp_path, "model").get("b"), rows(1, seed=5)[0])


def test_damage_is_named_with_its_remedy(tmp_path: Path) -> None:
    VectorCache(tmp_path, "model").add(["a", "b"], rows(2))
    (path,) = tmp_path.glob("*.f32")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"has 23 bytes, but vectors.jsonl speaks of 24; remove the folder"):
        VectorCache(tmp_path, "model")
    index = tmp_path / "vectors.jsonl"
    index.write_text('{"step": 1, "embedder": "model", "texts": "a"}\n')
    with pytest.raises(DataError, match="record of step 1 lacks one of texts; remove the folder"):
        VectorCache(tmp_path, "model")
    index.write_text('{"step": 1, "embedder": "model", "texts": ["a"]}\n')
    with pytest.raises(DataError, match="damaged: dimensions"):
        VectorCache(tmp_path, "model")
    (tmp_path / "codes.jsonl").write_text(
        '{"step": 1, "coder": "c", "questions": ["a"], "codes": [], "reasons": []}\n'
    )
    with pytest.raises(DataError, match="lacks one of questions, codes, reasons"):
        CodeCache(tmp_path, "c")
