"""What the folder of a self-play holds, read back: numbers per iteration, and how varied its questions are.

Written while the self-play runs and read at any moment: files may be missing, the last line may be torn. What
cannot be read becomes a note on the page, never a failure.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_srpo.config.loader import read_yaml
from megatron_srpo.errors import ConfigError, DataError
from megatron_srpo.report.metrics import Row
from megatron_srpo.report.run_data import CONFIG_FILE, RunData

ITERATIONS_FILE = "iterations.jsonl"
QUESTIONS_FILE = "questions.jsonl"
DIVERSITY_FILE = "diversity.json"
NEAREST_FILE = "nearest.jsonl"
DIVERSITY_VERSION = 1  # of diversity.json and nearest.jsonl

_FOLDER = re.compile(r"iteration_(\d+)")
_HELD_OUT = "heldout"


@dataclass(frozen=True)
class SelfPlayData:
    """One self-play, as far as it has got.

    Attributes:
        run: a row per iteration, its number as ``step``; ``heldout`` is the accuracy after it, with the
            accuracy before the first iteration as step 0.
        diversity: the tree of diversity.json; empty where there is none.
        nearest: the rows of nearest.jsonl.
        folders: of the iterations, by number.
    """

    run: RunData
    diversity: Mapping[str, Any] = field(default_factory=dict)
    nearest: Sequence[Mapping[str, Any]] = ()
    folders: Mapping[int, Path] = field(default_factory=dict)


def is_self_play(folder: str | Path) -> bool:
    """Say whether a folder is that of a self-play, perhaps in its first iteration."""
    path = Path(folder)
    return path.is_dir() and ((path / ITERATIONS_FILE).is_file() or bool(iteration_folders(path)))


def iteration_folders(folder: Path) -> dict[int, Path]:
    """Return the folders of the iterations by number, in order."""
    found = ((_FOLDER.fullmatch(path.name), path) for path in folder.iterdir() if path.is_dir())
    return dict(sorted((int(match.group(1)), path) for match, path in found if match))


def load_self_play(folder: str | Path) -> SelfPlayData:
    """Read the folder of a self-play.

    Raises:
        DataError: the folder does not exist, or is not that of a self-play.
    """
    path = Path(folder)
    if not is_self_play(path):
        raise DataError(f"{path} is not the folder of a self-play; give its output_dir ({ITERATIONS_FILE})")
    config, config_notes = _config(path / CONFIG_FILE)
    rows, row_notes = read_rows(path / ITERATIONS_FILE)
    diversity, diversity_notes = _diversity(path / DIVERSITY_FILE)
    nearest, nearest_notes = read_rows(path / NEAREST_FILE)
    notes = (*config_notes, *row_notes, *diversity_notes, *nearest_notes, *diversity.get("notes", ()))
    merged = _merged(rows, diversity.get("iterations", ()))
    if not merged:
        notes += ("No iteration has finished yet.",)
    return SelfPlayData(
        run=RunData(path=path, rows=merged, config=config, notes=tuple(dict.fromkeys(notes))),
        diversity=diversity,
        nearest=[row for row in nearest if _is_nearest(row)],
        folders=iteration_folders(path),
    )


def read_rows(path: Path) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """Return the JSON objects of a file, one per line, and a note on lines that are none.

    A missing file has no rows; a torn last line is what a kill leaves, and is not worth a note.
    """
    if not path.is_file():
        return [], ()
    lines = path.read_bytes().splitlines()
    parsed = [_object(line) for line in lines]
    bad = [number for number, row in enumerate(parsed[:-1], 1) if row is None]
    notes = (f"{path.name}: line {bad[0]} is not a JSON object; {len(bad)} such left out.",) if bad else ()
    return [row for row in parsed if row is not None], notes


def finite(value: Any) -> float | None:
    """Return a JSON value as a number, or None where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # ValueError covers JSONDecodeError and UnicodeDecodeError
        return None
    return row if isinstance(row, dict) else None


def _config(path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    try:
        return read_yaml(path), ()
    except ConfigError as error:
        return {}, (f"No configuration shown: {error}",)


def _diversity(path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    if not path.is_file():
        return {}, (f"No {path.name}: nothing is known about the questions' diversity yet.",)
    tree = _object(path.read_bytes())
    if tree is None or tree.get("version") != DIVERSITY_VERSION:
        return {}, (f"{path.name} is damaged or of another version; write it anew: megatron-srpo report",)
    return tree, ()


def _merged(*parts: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Join rows of one iteration; a later row of the same iteration wins, as after a resume."""
    joined: dict[int, dict[str, float | int | None]] = {}
    for row in (row for part in parts for row in part):
        number = row.get("iteration")
        if type(number) is not int or number < 1:
            continue
        own = joined.setdefault(number, {"step": number})
        own |= {key: finite(value) for key, value in row.items() if key not in ("iteration", "step")}
    rows = [joined[number] for number in sorted(joined)]
    return _with_held_out(rows)


def _with_held_out(rows: Sequence[dict[str, float | int | None]]) -> list[Row]:
    """Add ``heldout`` and ``heldout/<set>``: after each iteration, and before the first as step 0."""
    if not rows:
        return []
    before = {"step": 0, **_renamed(rows[0], "accuracy/before")} if rows[0]["step"] == 1 else {}
    first = [before] if len(before) > 1 else []
    return [*first, *({**row, **_renamed(row, "accuracy/after")} for row in rows)]


def _renamed(row: Row, prefix: str) -> dict[str, float | int | None]:
    """Return the values below ``prefix``, named after held-out sets."""
    return {
        _HELD_OUT + name.removeprefix(prefix): value
        for name, value in row.items()
        if name == prefix or name.startswith(prefix + "/")
    }


def _is_nearest(row: Mapping[str, Any]) -> bool:
    """Say whether a row has what the page shows."""
    texts = ("id", "question", "code", "old_id", "old_question", "old_code")
    return (
        all(isinstance(row.get(key), str) for key in texts)
        and all(type(row.get(key)) is int for key in ("iteration", "old_iteration"))
        and all(finite(row.get(key)) is not None for key in ("cosine", "bleu"))
    )
