"""The files of a memory bank: append-only, and an iteration stands in them whole or not at all.

    settings.json     format, name of the skill measure, length of a vector
    entries.jsonl     one entry per line
    vectors.f32       one row of little-endian float32 per entry
    iterations.jsonl  one line per iteration, written last: entries and bytes up to its end

A kill leaves at most bytes behind what the last line of ``iterations.jsonl`` covers. Nobody reads them, and
the next append cuts them off. So a bank can be read by any number of processes while one appends to it.
"""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_srpo.errors import DataError
from megatron_srpo.report.records import RecordFile, read_records
from megatron_srpo.selfplay.types import Remembered

FORMAT = 1
_ROW = np.dtype("<f4")


@dataclass(frozen=True)
class Settings:
    """What all vectors of a bank have in common.

    Attributes:
        name: of the skill measure.
        dimension: numbers of a vector.
    """

    name: str
    dimension: int


@dataclass(frozen=True)
class Mark:
    """Where an iteration ends.

    Attributes:
        entries: of this iteration and all before it.
        text_bytes: of ``entries.jsonl`` that they take.
    """

    iteration: int
    entries: int
    text_bytes: int


class MemoryFiles:
    """Reads and extends the files of one bank.

    Args:
        folder: exists and holds settings.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries, self.vectors = folder / "entries.jsonl", folder / "vectors.f32"
        self.iterations = folder / "iterations.jsonl"
        self.settings = read_settings(folder)
        self.row_bytes = _ROW.itemsize * self.settings.dimension

    def marks(self) -> list[Mark]:
        """Return where the finished iterations end, in order.

        Raises:
            DataError: the files are damaged.
        """
        marks = [self._mark(record) for record in read_records(self.iterations)]
        if marks:
            self._check_size(self.entries, marks[-1].text_bytes)
            self._check_size(self.vectors, marks[-1].entries * self.row_bytes)
        return marks

    def read_entries(self, end: Mark) -> list[Remembered]:
        """Return the entries up to a mark."""
        if not end.entries:
            return []
        with self.entries.open("rb") as file:
            lines = file.read(end.text_bytes).splitlines()
        if len(lines) != end.entries:
            raise self._damaged(self.entries, f"{len(lines)} entries where {end.entries} were written")
        return [self._entry(number, line) for number, line in enumerate(lines, 1)]

    def map_vectors(self, end: Mark) -> NDArray[np.float32]:
        """Return the vectors up to a mark, one row per entry, as they lie in the file."""
        if not end.entries:
            return np.zeros((0, self.settings.dimension), np.float32)
        # Copy on write: torch warns of arrays that cannot be written to, and the file stays as it is.
        return np.memmap(self.vectors, _ROW, "c", shape=(end.entries, self.settings.dimension))

    def append(
        self, last: Mark, iteration: int, entries: Sequence[Remembered], vectors_ND: NDArray[np.float32]
    ) -> Mark:
        """Write an iteration behind the last one."""
        text = "".join(json.dumps(asdict(entry), sort_keys=True, allow_nan=False) + "\n" for entry in entries)
        _write_at(self.vectors, last.entries * self.row_bytes, vectors_ND.astype(_ROW).tobytes())
        _write_at(self.entries, last.text_bytes, text.encode("ascii"))
        mark = Mark(iteration, last.entries + len(entries), last.text_bytes + len(text))
        record = {"step": iteration, "entries": mark.entries, "text_bytes": mark.text_bytes}
        RecordFile(self.iterations, one_per_step=True).append([record])
        _force_folder(self.folder)
        return mark

    def _mark(self, record: dict[str, Any]) -> Mark:
        entries, text_bytes = record.get("entries"), record.get("text_bytes")
        if not isinstance(entries, int) or not isinstance(text_bytes, int):
            raise self._damaged(self.iterations, f"iteration {record['step']} does not say where it ends")
        return Mark(record["step"], entries, text_bytes)

    def _entry(self, number: int, line: bytes) -> Remembered:
        try:
            return Remembered(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise self._damaged(self.entries, f"line {number}: {error}") from error

    def _check_size(self, path: Path, wanted: int) -> None:
        size = path.stat().st_size if path.exists() else 0
        if size < wanted:
            raise self._damaged(path, f"{size} bytes where {wanted} were written")

    def _damaged(self, path: Path, what: str) -> DataError:
        return DataError(
            f"{path} is damaged ({what}); put the memory's folder back from a copy, or remove it to "
            "begin the self-play anew"
        )


def write_settings(folder: Path, settings: Settings) -> None:
    """Make an empty bank, unless another process has just made one."""
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f"settings.{os.getpid()}.partial"
    draft.write_text(json.dumps({"format": FORMAT, **asdict(settings)}, indent=1) + "\n", encoding="utf-8")
    # A link is made whole or not at all and replaces nothing.
    with suppress(FileExistsError):
        os.link(draft, folder / "settings.json")
    draft.unlink()


def read_settings(folder: Path) -> Settings:
    """Return the settings of a bank.

    Raises:
        DataError: the folder holds no bank, a damaged one, or one of another version.
    """
    path = folder / "settings.json"
    if not path.is_file():
        raise DataError(f"{folder} holds no memory bank (no settings.json); name the folder of a self-play")
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        version, settings = tree["format"], Settings(str(tree["name"]), int(tree["dimension"]))
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} is damaged ({error!r}); put it back from a copy") from error
    if version != FORMAT:
        raise DataError(
            f"{path} has format {version}, this version reads {FORMAT}; use the one that wrote it"
        )
    return settings


def _write_at(path: Path, offset: int, content: bytes) -> None:
    """Cut a file at an offset, write behind it and force it to disk."""
    with path.open("ab") as file:
        file.truncate(offset)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _force_folder(folder: Path) -> None:
    """Force the names of new files to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
