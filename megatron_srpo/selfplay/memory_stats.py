"""What a memory bank holds, in numbers: sizes, labels, and how alike its questions are."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from megatron_srpo.selfplay.memory import MemoryBank
from megatron_srpo.selfplay.memory_index import vector_sum
from megatron_srpo.selfplay.types import Remembered

#: Nearest neighbours are looked up for at most so many questions of an iteration, evenly spaced.
SAMPLED = 1000
_SHARE_BINS = 10
_BLOCK_NUMBERS = 1 << 24


@dataclass(frozen=True)
class IterationStats:
    """One iteration of the memory; cosines are None where there is nothing to compare.

    Attributes:
        share_mean: mean share of the labels.
        within_mean: mean cosine of two different entries.
        within_nearest: mean cosine to the nearest other entry of the iteration.
        earlier_mean: mean cosine to the entries of earlier iterations.
        earlier_nearest: mean cosine to the nearest of them.
        earlier_max: largest cosine to any of them.
    """

    iteration: int
    entries: int
    share_mean: float | None
    within_mean: float | None
    within_nearest: float | None
    earlier_mean: float | None
    earlier_nearest: float | None
    earlier_max: float | None


@dataclass(frozen=True)
class MemoryStats:
    """A whole memory.

    Attributes:
        shares: entries by share, in tenths: 0 to below 0.1, ..., 0.9 to 1.
        label_characters: least, median and largest length of a label; None without entries.
        vector_lengths: least and largest; None without entries.
        repeated_questions: entries whose question an earlier entry has, letter by letter.
        repeated_codes: likewise of the code that was embedded.
    """

    name: str
    dimension: int
    entries: int
    iterations: list[IterationStats]
    shares: list[int]
    label_characters: tuple[int, float, int] | None
    vector_lengths: tuple[float, float] | None
    repeated_questions: int
    repeated_codes: int


def memory_stats(bank: MemoryBank) -> MemoryStats:
    """Measure a memory.

    Raises:
        DataError: its files are damaged.
    """
    entries = bank.everything().entries
    lengths = [len(entry.label) for entry in entries]
    return MemoryStats(
        name=bank.name,
        dimension=bank.dimension,
        entries=len(bank),
        iterations=[_iteration_stats(bank, iteration) for iteration in bank.iterations],
        shares=_histogram(entries),
        label_characters=(min(lengths), median(lengths), max(lengths)) if lengths else None,
        vector_lengths=_vector_lengths(bank.everything().vectors),
        repeated_questions=_repeated([entry.question for entry in entries]),
        repeated_codes=_repeated([entry.code for entry in entries]),
    )


def _iteration_stats(bank: MemoryBank, iteration: int) -> IterationStats:
    earlier, view = bank.before(iteration), bank.before(iteration + 1)
    entries, vectors_ND = view.entries[len(earlier) :], view.vectors[len(earlier) :]
    asked = _evenly(len(entries))
    found = earlier.similarity(vectors_ND[asked]) if len(earlier) and entries else None
    return IterationStats(
        iteration=iteration,
        entries=len(entries),
        share_mean=sum(entry.share for entry in entries) / len(entries) if entries else None,
        within_mean=_mean_between(vectors_ND),
        within_nearest=_nearest_other(vectors_ND, asked),
        earlier_mean=float(found.mean_N.mean()) if found else None,
        earlier_nearest=float(found.max_N.mean()) if found else None,
        earlier_max=float(found.max_N.max()) if found else None,
    )


def _evenly(count: int) -> NDArray[np.int64]:
    """Return the numbers of at most ``SAMPLED`` entries, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(count, SAMPLED)).round().astype(np.int64))


def _mean_between(vectors_ND: NDArray[np.float32]) -> float | None:
    """Return the mean cosine of two different vectors: from their sum, without forming the pairs."""
    count = len(vectors_ND)
    if count < 2:
        return None
    total_D = vector_sum(vectors_ND)
    own = float(np.einsum("nd,nd->", vectors_ND, vectors_ND, dtype=np.float64))
    return float(total_D @ total_D - own) / (count * (count - 1))


def _nearest_other(vectors_ND: NDArray[np.float32], asked: NDArray[np.int64]) -> float | None:
    """Return the mean cosine of some vectors to the nearest other one."""
    if len(vectors_ND) < 2:
        return None
    step = max(1, _BLOCK_NUMBERS // len(vectors_ND))
    nearest = []
    for start in range(0, len(asked), step):
        rows = asked[start : start + step]
        cosine_RN = vectors_ND[rows] @ vectors_ND.T
        cosine_RN[np.arange(len(rows)), rows] = -np.inf
        nearest.append(cosine_RN.max(axis=1))
    return float(np.concatenate(nearest).mean(dtype=np.float64))


def _histogram(entries: Sequence[Remembered]) -> list[int]:
    tenths = Counter(min(_SHARE_BINS - 1, int(entry.share * _SHARE_BINS)) for entry in entries)
    return [tenths[number] for number in range(_SHARE_BINS)]


def _vector_lengths(vectors_ND: NDArray[np.float32]) -> tuple[float, float] | None:
    if not len(vectors_ND):
        return None
    length_N = np.sqrt(np.einsum("nd,nd->n", vectors_ND, vectors_ND))
    return float(length_N.min()), float(length_N.max())


def _repeated(texts: Sequence[str]) -> int:
    return len(texts) - len(set(texts))
