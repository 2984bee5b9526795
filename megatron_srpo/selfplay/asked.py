"""The questions of a self-play as the report reads them: what was written, and what of it was valid.

Every file may be missing, torn or damaged; what cannot be read is said in a note.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_srpo.report.self_play_data import QUESTIONS_FILE, finite, iteration_folders, read_rows
from megatron_srpo.selfplay.spread import Vectors
from megatron_srpo.selfplay.types import Remembered

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Asked:
    """The valid questions of one iteration.

    Attributes:
        vectors_ND: their skills, a row per question; None where skills were not measured.
    """

    iteration: int
    entries: Sequence[Remembered]
    vectors_ND: Vectors | None


def by_iteration(entries: Sequence[Remembered], vectors_ND: Vectors | None) -> list[Asked]:
    """Take entries apart by iteration, ascending, in their own order."""
    places: dict[int, list[int]] = {}
    for place, entry in enumerate(entries):
        places.setdefault(entry.iteration, []).append(place)
    return [
        Asked(number, [entries[i] for i in own], None if vectors_ND is None else vectors_ND[own])
        for number, own in sorted(places.items())
    ]


def read_pools(folder: Path) -> tuple[dict[int, Rows], tuple[str, ...]]:
    """Return the rows of every iteration's questions, as far as they were written."""
    pools: dict[int, Rows] = {}
    notes: tuple[str, ...] = ()
    for number, path in iteration_folders(folder).items():
        rows, own_notes = read_rows(path / QUESTIONS_FILE)
        notes += tuple(f"iteration {number}, {note}" for note in own_notes)
        if rows:
            pools[number] = rows
    return pools, notes


def valid_entries(pools: Mapping[int, Rows]) -> list[Remembered]:
    """Return the valid questions of the pools; their skills are unknown, so their code is empty."""
    return [
        Remembered(str(row.get("id")), number, row["question"], str(row.get("label")), _share(row), "")
        for number, rows in sorted(pools.items())
        for row in rows
        if row.get("valid") is True and isinstance(row.get("question"), str)
    ]


def text_repeats(pools: Mapping[int, Rows]) -> dict[int, dict[str, float]]:
    """Return, per iteration, how many of its well-formed questions are the same text again.

    ``text/distinct``: share of different texts; ``text/recurrence``: share of the questions whose text was
    written in an earlier iteration (not for the first). White space does not tell texts apart.
    """
    found: dict[int, dict[str, float]] = {}
    earlier: set[str] = set()
    for number, rows in sorted(pools.items()):
        texts = [" ".join(row["question"].split()) for row in rows if isinstance(row.get("question"), str)]
        if not texts:
            continue
        found[number] = {"text/distinct": len(set(texts)) / len(texts)}
        if earlier:
            found[number]["text/recurrence"] = sum(text in earlier for text in texts) / len(texts)
        earlier.update(texts)
    return found


def _share(row: Mapping[str, Any]) -> float:
    return finite(row.get("share")) or 0.0
