"""The memory bank of R-Diverse (arXiv 2602.13103): valid questions of all iterations, labels, skills.

It is persistent and append-only; ``memory_files.py`` says how it lies on disk. One process appends, any
number read.
"""

import hashlib
import heapq
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from megatron_srpo.errors import DataError
from megatron_srpo.selfplay.memory_files import (
    Mark,
    MemoryFiles,
    Settings,
    read_settings,
    write_settings,
)
from megatron_srpo.selfplay.memory_index import Similarity, cosines, similarity, vector_sum
from megatron_srpo.selfplay.types import Remembered

_UNIT = 1e-3


class MemoryView:
    """The entries of some first iterations; later appends do not change it.

    Args:
        files: the bank's.
        end: where the last of these iterations ends.
    """

    def __init__(self, files: MemoryFiles, end: Mark) -> None:
        self._files, self._end = files, end

    def __len__(self) -> int:
        return self._end.entries

    @cached_property
    def entries(self) -> list[Remembered]:
        """The entries in the order in which they came; read at first use.

        Raises:
            DataError: the file is damaged.
        """
        return self._files.read_entries(self._end)

    @cached_property
    def vectors(self) -> NDArray[np.float32]:
        """Their skill vectors ``MD`` of unit length, mapped from the file; not to be written to."""
        return self._files.map_vectors(self._end)

    @cached_property
    def _sum_D(self) -> NDArray[np.float64]:
        return vector_sum(self.vectors)

    def similarity(
        self, vectors_ND: NDArray[np.floating], device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Similarity:
        """Compare unit vectors with all entries; see :mod:`~megatron_srpo.selfplay.memory_index`.

        Raises:
            DataError: the vectors are of another length than the bank's.
        """
        vectors_ND = np.asarray(vectors_ND)
        self._check_shape(vectors_ND)
        return similarity(vectors_ND, self.vectors, self._sum_D, device, dtype)

    def nearest(self, vector_D: NDArray[np.floating], count: int) -> list[tuple[Remembered, float]]:
        """Return the entries nearest to a unit vector with their cosines, nearest first.

        Raises:
            DataError: the vector is of another length than the bank's.
        """
        self._check_shape(np.asarray(vector_D)[None])
        cosine_M = cosines(vector_D, self.vectors)
        order = np.argsort(-cosine_M, kind="stable")[:count]
        return [(self.entries[place], float(cosine_M[place])) for place in order.tolist()]

    def sample(self, count: int, seed: int) -> list[Remembered]:
        """Draw entries without replacement, all of them if there are fewer than ``count``.

        The draw is decided by the seed and the entries' ids alone: a hash rather than a generator, whose
        choices may change between versions of its library.
        """

        def rank(entry: Remembered) -> bytes:
            return hashlib.sha256(f"{seed}:{entry.id}".encode("utf-8", "surrogatepass")).digest()

        return heapq.nsmallest(count, self.entries, key=rank)

    def _check_shape(self, vectors_ND: NDArray[np.floating]) -> None:
        dimension = self._files.settings.dimension
        if vectors_ND.ndim != 2 or vectors_ND.shape[1] != dimension:
            raise DataError(
                f"vectors of shape {vectors_ND.shape} cannot be compared with those of {self._files.folder}, "
                f"which have {dimension} numbers; measure both by the same skill.*"
            )


class MemoryBank:
    """The memory of a self-play. Made by :meth:`open` or :meth:`read`."""

    def __init__(self, files: MemoryFiles) -> None:
        self._files = files
        self._views: dict[Mark, MemoryView] = {}
        self._marks = files.marks()

    @classmethod
    def open(cls, folder: str | Path, name: str, dimension: int) -> "MemoryBank":
        """Open a bank, or make an empty one.

        Args:
            name: of the skill measure, which decides the vectors.
            dimension: length of a vector.

        Raises:
            DataError: the bank's vectors come from another measure, or its files are damaged.
        """
        folder = Path(folder)
        if not (folder / "settings.json").exists():
            write_settings(folder, Settings(name, dimension))
        stored = read_settings(folder)
        if stored != Settings(name, dimension):
            raise DataError(
                f"the memory in {folder} holds vectors of {stored.name!r} with {stored.dimension} numbers; "
                f"those of {name!r} with {dimension} cannot be compared with them: set skill.* back, or "
                "choose another output_dir"
            )
        return cls.read(folder)

    @classmethod
    def read(cls, folder: str | Path) -> "MemoryBank":
        """Open a bank that is there, whatever measured its vectors.

        Raises:
            DataError: there is none, or its files are damaged.
        """
        return cls(MemoryFiles(Path(folder)))

    @property
    def name(self) -> str:
        """What measured the vectors."""
        return self._files.settings.name

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self._files.settings.dimension

    @property
    def iterations(self) -> list[int]:
        """The finished iterations, those without entries included."""
        return [mark.iteration for mark in self._marks]

    def __len__(self) -> int:
        return self._end.entries

    @property
    def _end(self) -> Mark:
        return self._marks[-1] if self._marks else Mark(-1, 0, 0)

    def before(self, iteration: int) -> MemoryView:
        """Return the entries of all earlier iterations."""
        earlier = [mark for mark in self._marks if mark.iteration < iteration]
        end = earlier[-1] if earlier else Mark(-1, 0, 0)
        # Kept, because a view's sum of vectors and entries cost a pass over the files.
        return self._views.setdefault(end, MemoryView(self._files, end))

    def everything(self) -> MemoryView:
        """Return all entries."""
        return self.before(self._end.iteration + 1)

    def append(self, iteration: int, entries: Sequence[Remembered], vectors_ND: NDArray[np.floating]) -> None:
        """Add an iteration; a kill leaves it whole or absent. The same one again does nothing.

        Args:
            entries: of this iteration; none is possible.
            vectors_ND: their skill vectors, of unit length.

        Raises:
            DataError: the iteration is there with other entries, or a later one is; an id is not new; an
                entry is of another iteration; a vector is not of unit length or of the bank's dimension.
        """
        empty_0D = np.zeros((0, self.dimension))
        vectors_ND = np.asarray(vectors_ND if len(entries) else empty_0D, np.float32)
        self._check(iteration, entries, vectors_ND)
        if iteration in self.iterations:
            self._check_same(iteration, entries)
            return
        if iteration <= self._end.iteration:
            raise DataError(
                f"the memory in {self._files.folder} already holds iteration {self._end.iteration}, so "
                f"{iteration} cannot be added; choose another output_dir"
            )
        self._check_ids(entries)
        self._marks.append(self._files.append(self._end, iteration, entries, vectors_ND))

    def _check(self, iteration: int, entries: Sequence[Remembered], vectors_ND: NDArray[np.float32]) -> None:
        for entry in entries:
            if entry.iteration != iteration or not 0 <= entry.share <= 1:
                raise DataError(
                    f"memory entry {entry.id!r} has iteration {entry.iteration} and share {entry.share}; "
                    f"it must be of iteration {iteration}, and its share between 0 and 1"
                )
        if vectors_ND.shape != (len(entries), self.dimension):
            raise DataError(
                f"{len(entries)} memory entries of {self.dimension} numbers each do not go with vectors "
                f"of shape {vectors_ND.shape}"
            )
        length_N = np.linalg.norm(vectors_ND, axis=1)
        for entry, length in zip(entries, length_N.tolist(), strict=True):
            if not abs(length - 1) <= _UNIT:  # so put that NaN is refused
                raise DataError(f"the vector of memory entry {entry.id!r} has length {length}, not 1")

    def _check_ids(self, entries: Sequence[Remembered]) -> None:
        known = {entry.id for entry in self.everything().entries}
        for entry in entries:
            if entry.id in known:
                raise DataError(
                    f"the memory in {self._files.folder} already holds an entry {entry.id!r}; ids must be new"
                )
            known.add(entry.id)

    def _check_same(self, iteration: int, entries: Sequence[Remembered]) -> None:
        stored = [entry for entry in self.before(iteration + 1).entries if entry.iteration == iteration]
        if stored != list(entries):
            raise DataError(
                f"the memory in {self._files.folder} holds iteration {iteration} with {len(stored)} entries "
                f"that are not these {len(entries)}; another self-play ran in this folder: choose another "
                "output_dir"
            )
