"""metrics.jsonl: one line of named numbers per step, the single source of every curve, table and warning."""

import math
import numbers
import warnings
from collections.abc import Mapping
from pathlib import Path

from megatron_srpo.report.records import RecordFile, read_records

Row = Mapping[str, float | int | None]
"""One step: metric name to value; None where the value was not finite."""

_CLOCK_PREFIXES = ("time/", "memory/")
_CLOCK_NAMES = frozenset({"tokens/per_second", "timestamp", "wall_time", "wall_clock"})


class MetricsFile:
    """Append-only writer of metrics.jsonl; see ``records.py`` for what survives a kill."""

    def __init__(self, path: str | Path) -> None:
        self._file = RecordFile(path, one_per_step=True)

    @property
    def last_step(self) -> int | None:
        """The last step in the file, or None while it is empty."""
        return self._file.last_step

    def append(self, row: Row) -> None:
        """Write one step's metrics and force them to disk.

        Floats keep every bit (shortest round-trip form). NaN and infinities have no JSON form and one bad
        metric should not end a run of days: they are written as null, with a RuntimeWarning that names them.

        Raises:
            TypeError: ``step`` is missing or not an integer, or a value is not a number.
            DataError: the file already holds this step or a later one.
        """
        plain = {name: _plain(name, value) for name, value in row.items()}
        if type(plain.get("step")) is not int:
            raise TypeError(f"a metrics row needs an integer 'step'; got {row.get('step')!r}")
        bad = sorted(name for name, value in plain.items() if value is None and row[name] is not None)
        if bad:
            warnings.warn(
                f"not a finite number, written as null: {', '.join(bad)}", RuntimeWarning, stacklevel=2
            )
        self._file.append([plain])

    def rewind(self, step: int) -> int:
        """Forget everything after ``step``, the step of the checkpoint resumed; return the rows dropped."""
        return self._file.rewind(step)


def read_metrics(path: str | Path) -> list[dict[str, float | int | None]]:
    """Read all rows, oldest first; a torn last line is ignored and a missing file has no rows.

    Raises:
        DataError: a line other than the last is unreadable.
    """
    return list(read_records(path))


def deterministic(row: Row) -> dict[str, float | int | None]:
    """Return the row without what a clock or the machine decides, for bit-for-bit comparison of two runs."""
    return {
        name: value
        for name, value in row.items()
        if name not in _CLOCK_NAMES and not name.startswith(_CLOCK_PREFIXES)
    }


def _plain(name: str, value: float | int | None) -> float | int | None:
    """Turn NumPy scalars into Python numbers and non-finite floats into None."""
    if value is None:
        return None
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    raise TypeError(
        f"metric {name} = {value!r} is a {type(value).__name__}; convert it with float(...) first"
    )
