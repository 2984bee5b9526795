"""What was measured before, on disk: codes by question and coder, vectors by embedded text and embedder.

Append-only, one record per batch, so a batch is there as a whole or not at all::

    codes.jsonl           {"step", "coder", "questions": [sha256], "codes": [text or null], "reasons"}
    vectors.jsonl         {"step", "embedder", "texts": [sha256], "dimension"}
    vectors-<digest>.f32  rows of one embedder, float32, in the order of its records

Rows are forced to disk before the record that speaks of them; rows without a record are cut off when the
folder is opened.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_srpo.errors import DataError
from megatron_srpo.report.records import RecordFile, read_records
from megatron_srpo.selfplay.skill.types import Rewrite


def text_key(text: str) -> str:
    """Return what stands for a text in the files."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class CodeCache:
    """Codes of one coder; those of others stay in the file.

    Raises:
        DataError: the file is damaged.
    """

    def __init__(self, folder: Path, coder: str) -> None:
        self._coder = coder
        self._file = RecordFile(folder / "codes.jsonl")
        self._found: dict[str, Rewrite] = {}
        for record in read_records(self._file.path):
            if record.get("coder") == coder:
                columns = _columns(record, self._file.path, "questions", "codes", "reasons")
                self._found |= {
                    key: Rewrite(code, reason) for key, code, reason in zip(*columns, strict=True)
                }

    def __len__(self) -> int:
        return len(self._found)

    def get(self, question: str) -> Rewrite | None:
        """Return what the coder made of a question, None where it was not asked."""
        return self._found.get(text_key(question))

    def add(self, questions: Sequence[str], rewrites: Sequence[Rewrite]) -> None:
        """Save a batch."""
        keys = [text_key(question) for question in questions]
        self._file.append(
            [
                {
                    "step": (self._file.last_step or 0) + 1,
                    "coder": self._coder,
                    "questions": keys,
                    "codes": [rewrite.code for rewrite in rewrites],
                    "reasons": [rewrite.reason for rewrite in rewrites],
                }
            ]
        )
        self._found.update(zip(keys, rewrites, strict=True))


class VectorCache:
    """Vectors of one embedder.

    Raises:
        DataError: a file is damaged, or lacks rows that a record speaks of.
    """

    def __init__(self, folder: Path, embedder: str) -> None:
        self._embedder = embedder
        self._index = RecordFile(folder / "vectors.jsonl")
        digest = hashlib.sha256(embedder.encode()).hexdigest()[:12]
        self._rows = folder / f"vectors-{digest}.f32"
        self._found: dict[str, NDArray[np.float32]] = {}
        keys, dimension = self._read_index()
        self._cut_off(len(keys) * dimension * 4)
        if keys:
            # Mapped: a long run's vectors need not fit in memory twice.
            rows_RD = np.memmap(self._rows, np.float32, "r", shape=(len(keys), dimension))
            self._found = dict(zip(keys, rows_RD, strict=True))

    def __len__(self) -> int:
        return len(self._found)

    def get(self, text: str) -> NDArray[np.float32] | None:
        """Return a text's vector, None where there is none yet."""
        return self._found.get(text_key(text))

    def add(self, texts: Sequence[str], rows_TD: NDArray[np.float32]) -> None:
        """Save a batch."""
        keys = [text_key(text) for text in texts]
        with self._rows.open("ab") as file:
            file.write(np.ascontiguousarray(rows_TD, dtype="<f4").tobytes())
            file.flush()
            os.fsync(file.fileno())
        self._index.append(
            [
                {
                    "step": (self._index.last_step or 0) + 1,
                    "embedder": self._embedder,
                    "texts": keys,
                    "dimension": int(rows_TD.shape[1]),
                }
            ]
        )
        self._found.update(zip(keys, rows_TD.astype(np.float32, copy=True), strict=True))

    def _read_index(self) -> tuple[list[str], int]:
        """Return the keys of this embedder's rows in order, and their length."""
        keys: list[str] = []
        dimensions: set[int] = set()
        for record in read_records(self._index.path):
            if record.get("embedder") == self._embedder:
                keys += _columns(record, self._index.path, "texts")[0]
                dimensions.add(int(record.get("dimension", 0)))
        if len(dimensions) > 1 or 0 in dimensions:
            raise DataError(f"{self._index.path} is damaged: dimensions {dimensions}; {_REMEDY}")
        return keys, dimensions.pop() if dimensions else 0

    def _cut_off(self, expected: int) -> None:
        size = self._rows.stat().st_size if self._rows.exists() else 0
        if size < expected:
            raise DataError(
                f"{self._rows} has {size} bytes, but vectors.jsonl speaks of {expected}; {_REMEDY}"
            )
        if size > expected:
            os.truncate(self._rows, expected)


_REMEDY = "remove the folder, and the skills are measured again"


def _columns(record: dict[str, Any], path: Path, *names: str) -> list[list[Any]]:
    columns = [column for name in names if isinstance(column := record.get(name), list)]
    if len(columns) < len(names) or len({len(column) for column in columns}) != 1:
        raise DataError(
            f"{path}: the record of step {record['step']} lacks one of {', '.join(names)}; {_REMEDY}"
        )
    return columns
