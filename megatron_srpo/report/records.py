"""JSON-lines files of a run: append-only, safe against a kill at any moment, and able to go back to a step.

One record per line, every record with an integer ``step`` that never falls. A kill in the middle of a write
leaves at most one torn last line; readers ignore it and the next writer removes it. Text is written as pure
ASCII JSON, so a torn line is never also a broken UTF-8 sequence and a lone surrogate cannot stop a run.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from megatron_srpo.errors import DataError

Record = dict[str, Any]


class RecordFile:
    """Writer of one JSON-lines file.

    Opening an existing file removes a torn last line, nothing else. The file is opened anew for every append:
    a step takes seconds, and so no handle can outlive :meth:`rewind`.
    """

    def __init__(self, path: str | Path, *, one_per_step: bool = False) -> None:
        self.path = Path(path)
        self.one_per_step = one_per_step
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.last_step: int | None = None
        self._rewrite(None)

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Write records with sorted keys, one line each, and force them to disk.

        Raises:
            DataError: a step is not after the last one in the file (a run started twice in one folder).
        """
        lines, last = [], self.last_step
        for record in records:
            last = self._next_step(record["step"], last)
            lines.append(json.dumps(record, sort_keys=True, allow_nan=False) + "\n")
        with self.path.open("ab") as file:
            file.write("".join(lines).encode("ascii"))
            _force_to_disk(file)
        self.last_step = last

    def rewind(self, step: int) -> int:
        """Drop all records after ``step`` and a torn last line, atomically; return how many records went."""
        return self._rewrite(step)

    def _next_step(self, step: int, last: int | None) -> int:
        if last is not None and (step < last or (self.one_per_step and step == last)):
            raise DataError(
                f"{self.path} already holds step {last}, so step {step} cannot be added; "
                "resume the run (--resume) or choose another run folder"
            )
        return step

    def _rewrite(self, step: int | None) -> int:
        """Keep the records up to ``step`` (all for None); replace the file only if something must go."""
        self.last_step = None
        if not self.path.exists():
            return 0
        temporary = self.path.with_name(self.path.name + ".tmp")
        dropped = 0
        with temporary.open("wb") as kept:
            for line, record in _parsed_lines(self.path):
                if step is None or record["step"] <= step:
                    kept.write(line.rstrip(b"\n") + b"\n")
                    self.last_step = record["step"]
                else:
                    dropped += 1
            _force_to_disk(kept)
        self._replace(temporary)
        return dropped

    def _replace(self, temporary: Path) -> None:
        if temporary.stat().st_size == self.path.stat().st_size:
            temporary.unlink()
            return
        temporary.replace(self.path)
        # The rename itself lives in the folder; without this a power cut could undo it.
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_whole(path: Path, parts: Iterable[str], errors: str = "strict") -> Path:
    """Write a text file whole or not at all; return its path.

    Written beside and renamed, so that neither a reader nor a kill ever leaves half a file. A draft that a
    kill leaves has a name that the run folder's next owner removes (``training/fence.py``).

    Args:
        errors: what to do with halves of surrogate pairs, as for :func:`open`.
    """
    draft = path.with_name(f".{path.name}.partial")
    with draft.open("w", encoding="utf-8", errors=errors) as file:
        file.writelines(parts)
    return draft.replace(path)


def read_records(path: str | Path) -> Iterator[Record]:
    """Yield the records of a file in order, ignoring a torn last line; nothing if the file is missing.

    Raises:
        DataError: a line other than the last is not a JSON object with an integer ``step``.
    """
    if Path(path).exists():
        for _, record in _parsed_lines(Path(path)):
            yield record


def _parsed_lines(path: Path) -> Iterator[tuple[bytes, Record]]:
    bad: int | None = None
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if bad is not None:
                raise DataError(
                    f"{path} line {bad} is not a JSON object with an integer 'step', yet lines follow it; "
                    "something else changed the file: remove that line"
                )
            record = _parse(line)
            if record is None:
                bad = number
            else:
                yield line, record


def _parse(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:  # covers JSONDecodeError and UnicodeDecodeError
        return None
    return record if isinstance(record, dict) and type(record.get("step")) is int else None


def _force_to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
