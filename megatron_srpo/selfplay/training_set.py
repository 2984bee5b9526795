"""What the Solver trains on: the iteration's valid questions, and some that the memory has kept."""

from collections.abc import Mapping, Sequence
from typing import Any

from megatron_srpo.selfplay.memory import MemoryView
from megatron_srpo.selfplay.types import Remembered


def remembered_questions(iteration: int, rows: Sequence[Mapping[str, Any]]) -> list[Remembered]:
    """Return the valid questions among a pool's rows, their code still empty."""
    return [
        Remembered(row["id"], iteration, row["question"], row["label"], row["share"], "")
        for row in rows
        if row["valid"]
    ]


def replay_count(share: float, new: int) -> int:
    """Return how many remembered questions make up ``share`` of a training set with ``new`` other ones."""
    return round(new * share / (1 - share))


def training_set(
    new: Sequence[Remembered], past: MemoryView | None, replay: float, seed: int
) -> list[dict[str, Any]]:
    """Return the rows of the Solver's prompt file: new questions first, each with its stored label."""
    drawn = past.sample(replay_count(replay, len(new)), seed) if past is not None else []
    return [
        {"id": entry.id, "prompt": entry.question, "answer": entry.label, "iteration": entry.iteration}
        for entry in (*new, *drawn)
    ]
