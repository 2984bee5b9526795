"""What the Solver trains on."""

from pathlib import Path

import numpy as np
import pytest

from megatron_srpo.selfplay.memory import MemoryBank
from megatron_srpo.selfplay.training_set import remembered_questions, replay_count, training_set
from megatron_srpo.selfplay.types import Remembered


def entries(iteration: int, count: int) -> list[Remembered]:
    return [
        Remembered(
            f"{iteration}/{place}", iteration, f"{place} + {iteration}?", str(place + iteration), 0.5, ""
        )
        for place in range(count)
    ]


@pytest.mark.parametrize(("new", "replay", "count"), [(70, 0.3, 30), (7, 0.3, 3), (1, 0.3, 0), (10, 0.0, 0)])
def test_replay_is_a_share_of_the_whole_set(new: int, replay: float, count: int) -> None:
    assert replay_count(replay, new) == count


def test_valid_questions_with_their_labels() -> None:
    rows = [
        {"id": "2/0", "question": "a?", "label": "1", "share": 0.5, "valid": True},
        {"id": "2/1", "question": "b?", "label": "2", "share": 1.0, "valid": False},
        {"id": "2/2", "question": None, "label": None, "share": None, "valid": False},
    ]
    assert remembered_questions(2, rows) == [Remembered("2/0", 2, "a?", "1", 0.5, "")]


def test_a_third_of_the_set_comes_from_the_memory(tmp_path: Path) -> None:
    bank = MemoryBank.open(tmp_path, "test", 2)
    vectors = np.tile(np.array([1.0, 0.0], np.float32), (40, 1))
    bank.append(1, entries(1, 40), vectors)
    bank.append(2, entries(2, 40), vectors)
    new = entries(2, 40)
    rows = training_set(new, bank.before(2), 0.3, seed=5)
    assert len(rows) == 40 + 17
    assert [row["iteration"] for row in rows] == [2] * 40 + [1] * 17
    assert len({row["id"] for row in rows}) == len(rows)
    assert all(row["prompt"] == f"{int(row['answer']) - 1} + 1?" for row in rows[40:])
    assert rows == training_set(new, bank.before(2), 0.3, seed=5)
    assert rows != training_set(new, bank.before(2), 0.3, seed=6)


def test_a_small_memory_gives_all_that_it_has(tmp_path: Path) -> None:
    bank = MemoryBank.open(tmp_path, "test", 1)
    bank.append(1, entries(1, 2), np.ones((2, 1), np.float32))
    assert len(training_set(entries(2, 70), bank.before(2), 0.3, seed=1)) == 72
    assert len(training_set(entries(1, 70), bank.before(1), 0.3, seed=1)) == 70
    assert len(training_set(entries(1, 70), None, 0.3, seed=1)) == 70
