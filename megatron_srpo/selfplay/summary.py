"""One row of numbers per iteration."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_srpo.report.metrics import read_metrics
from megatron_srpo.selfplay.folders import CHALLENGER, SOLVER, IterationFolder

_ACCURACY = "accuracy"


def iteration_row(
    folder: IterationFolder,
    questions: Sequence[Mapping[str, Any]],
    trained_on: Sequence[Mapping[str, Any]],
    seconds: Mapping[str, float],
    extra: Mapping[str, float],
) -> dict[str, float]:
    """Summarise an iteration from its files.

    Args:
        questions: the pool's rows.
        trained_on: rows of the Solver's prompt file; empty where it was not trained.
        seconds: per phase.
        extra: further numbers.
    """
    replayed = sum(row["iteration"] < folder.number for row in trained_on)
    return {
        "step": folder.number,
        "iteration": folder.number,
        **_accuracies(folder.run(SOLVER)),
        **_pool(questions),
        **_labels([row for row in questions if row["valid"]]),
        **_challenger(folder.run(CHALLENGER)),
        "solver/new": len(trained_on) - replayed,
        "solver/replayed": replayed,
        **extra,
        **{f"time/{phase}": value for phase, value in seconds.items()},
    }


def _accuracies(run: Path) -> dict[str, float]:
    """Return held-out accuracy at the beginning and the end of the Solver's run, overall and per set."""
    rows = [row for row in read_metrics(run / "metrics.jsonl") if f"eval/{_ACCURACY}" in row]
    found: dict[str, float] = {}
    for when, row in (("before", rows[0]), ("after", rows[-1])) if rows else ():
        if (when == "before") == (row["step"] == 0):
            found |= _named(when, row)
    return found


def _named(when: str, row: Mapping[str, Any]) -> dict[str, float]:
    named = {}
    for name, value in row.items():
        if name.startswith("eval/") and name.endswith(f"/{_ACCURACY}") and value is not None:
            of_set = name.removeprefix("eval").removesuffix(f"/{_ACCURACY}")
            named[f"{_ACCURACY}/{when}{of_set}"] = value
    return named


def _pool(questions: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    written = [row for row in questions if row["question"] is not None]
    return {
        "pool/questions": len(questions),
        "pool/wellformed": len(written) / len(questions),
        "pool/valid": sum(row["valid"] for row in questions) / len(questions),
        **_mean("pool/share_mean", (row["share"] for row in written)),
    }


def _labels(valid: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    known = [row for row in valid if row["label_correct"] is not None]
    if not known:
        return {}
    right = sum(row["label_correct"] for row in known)
    return {"labels/known": len(known) / len(valid), "labels/accuracy": right / len(known)}


def _challenger(run: Path) -> dict[str, float]:
    rows = read_metrics(run / "metrics.jsonl")
    names = dict.fromkeys(name for row in rows for name in row if name.startswith("challenger/"))
    means: dict[str, float] = {}
    for name in names:
        means |= _mean(name, (row[name] for row in rows if row.get(name) is not None))
    return means


def _mean(name: str, values: Iterable[float | int | None]) -> dict[str, float]:
    found = [float(value) for value in values if value is not None]
    return {name: sum(found) / len(found)} if found else {}
