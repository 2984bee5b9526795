"""A made-up self-play whose every number can be worked out by hand, for the tests of its report.

Skills are axes of a space, so that two questions have cosine 1 (one skill) or 0. Each iteration asks some
skills, each so many times; every question has words of its own, but for those that are said to be repeated.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from megatron_srpo.selfplay.memory import MemoryBank
from megatron_srpo.selfplay.types import Remembered

DIMENSION = 8
Plan = Sequence[Mapping[int, int]]
"""Per iteration: skill to number of questions."""

RECURRING: Plan = ({0: 4, 1: 4}, {0: 2, 2: 6}, {0: 4, 2: 2, 3: 2})


def questions(plan: Plan = RECURRING) -> tuple[list[Remembered], NDArray[np.float32]]:
    """Return the valid questions of a plan and their skills."""
    entries: list[Remembered] = []
    axes: list[int] = []
    for iteration, skills in enumerate(plan, 1):
        numbers = enumerate(skill for skill, count in skills.items() for _ in range(count))
        for place, skill in numbers:
            entries.append(question(iteration, place, skill))
            axes.append(skill)
    return entries, np.eye(DIMENSION, dtype=np.float32)[axes]


def question(iteration: int, place: int, skill: int) -> Remembered:
    """Return a question no word of which stands in another."""
    text = " ".join(f"{word}{iteration}x{place}" for word in ("how", "many", "apples", "has", "Ann"))
    code = f"def solver(a=1):\n    return a + {skill}"
    return Remembered(f"{iteration}/{place}", iteration, text, "7", 0.5, code)


def write_self_play(
    folder: Path, plan: Plan = RECURRING, *, penalties: Sequence[float] = (0.3, 0.2, 0.1), **config: Any
) -> Path:
    """Write the folder of a finished self-play: a valid and a malformed question for every entry."""
    entries, vectors_ND = questions(plan)
    bank = MemoryBank.open(folder / "memory", "made up", DIMENSION)
    for iteration in range(1, len(plan) + 1):
        own = [place for place, entry in enumerate(entries) if entry.iteration == iteration]
        bank.append(iteration, [entries[place] for place in own], vectors_ND[own])
        write_pool(folder, iteration, [entries[place] for place in own])
    rows = [row(iteration, penalty) for iteration, penalty in enumerate(penalties[: len(plan)], 1)]
    write_lines(folder / "iterations.jsonl", rows)
    tree = {"seed": 1, "reward": {"repetition": "skill", "cluster_distance": 0.5}, **config}
    (folder / "config.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return folder


def write_pool(folder: Path, iteration: int, entries: Sequence[Remembered]) -> None:
    """Write questions.jsonl of an iteration."""
    pool: list[dict[str, Any]] = []
    for entry in entries:
        pool.append({"id": entry.id, "question": entry.question, "share": entry.share, "valid": True})
        pool.append({"id": entry.id + "b", "question": None, "share": None, "valid": False})
    write_lines(folder / f"iteration_{iteration:02d}" / "questions.jsonl", pool)


def row(iteration: int, penalty: float, *, top: float = 0.5) -> dict[str, float]:
    """Return a row of iterations.jsonl; accuracy goes from 0.25 by 0.05 to ``top`` at most."""
    before, after = (min(top, 0.2 + 0.05 * number) for number in (iteration, iteration + 1))
    return {
        "iteration": iteration,
        "accuracy/before": before,
        "accuracy/after": after,
        "accuracy/before/sums": before + 0.1,
        "accuracy/after/sums": after + 0.1,
        "accuracy/before/products": before - 0.1,
        "accuracy/after/products": after - 0.1,
        "pool/questions": 16,
        "pool/wellformed": 0.5,
        "pool/valid": 0.5,
        "pool/share_mean": 0.5,
        "labels/known": 1.0,
        "labels/accuracy": 0.8 - 0.05 * iteration,
        "challenger/reward": 0.4 - penalty - 0.05,
        "challenger/uncertainty": 0.4,
        "challenger/repetition": penalty,
        "challenger/memory": 0.05,
        "challenger/malformed": 0.1,
        "solver/new": 70,
        "solver/replayed": 30,
        "memory/size": 8 * iteration,
        "skills/unparsed": 0.0,
        "time/challenger": 20.0,
        "time/questions": 5.0,
        "time/votes": 8.0,
        "time/memory": 1.0,
        "time/solver": 40.0,
    }


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as JSON lines, into a folder that is made if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="ascii")
