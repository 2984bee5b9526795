"""Memory banks for tests."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from megatron_srpo.selfplay.memory import MemoryBank
from megatron_srpo.selfplay.types import Remembered


def remembered(iteration: int, number: int, question: str | None = None) -> Remembered:
    """An entry; its question is made up from its numbers unless given."""
    text = question or f"What is {iteration} times {number}?"
    share = 0.3 + 0.1 * (number % 6)
    code = f"def solver(a={iteration}, b={number}):\n    return a * b"
    return Remembered(f"{iteration}/{number}", iteration, text, str(iteration * number), share, code)


def entries(iteration: int, count: int) -> list[Remembered]:
    """Several entries of an iteration."""
    return [remembered(iteration, number) for number in range(count)]


def unit_rows(rows: Sequence[Sequence[float]]) -> np.ndarray:
    """Rows scaled to unit length, float32."""
    rows_ND = np.array(rows, np.float64)
    return (rows_ND / np.linalg.norm(rows_ND, axis=1, keepdims=True)).astype(np.float32)


def random_rows(count: int, dimension: int, seed: int = 0) -> np.ndarray:
    """Random unit rows, float32."""
    return unit_rows(np.random.default_rng(seed).normal(size=(count, dimension)))  # type: ignore[arg-type]


def bank_of(folder: Path, rows: Sequence[Sequence[float]], iteration: int = 1) -> MemoryBank:
    """A bank of one iteration with these vectors."""
    vectors_ND = unit_rows(rows)
    bank = MemoryBank.open(folder, "by hand", vectors_ND.shape[1])
    bank.append(iteration, entries(iteration, len(rows)), vectors_ND)
    return bank
