"""The numbers of ``memory stats``, each by hand or by all pairs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megatron_srpo.selfplay import memory_stats
from megatron_srpo.selfplay.memory import MemoryBank
from tests.selfplay.banks import entries, random_rows, remembered, unit_rows


def test_two_iterations_by_hand(tmp_path: Path) -> None:
    """First: e1, e1, e2: pairs 1, 0, 0. Second: e2 and 0.6 e1 + 0.8 e3: pair 0."""
    bank = MemoryBank.open(tmp_path, "by hand", 3)
    bank.append(1, entries(1, 3), unit_rows([[1, 0, 0], [1, 0, 0], [0, 1, 0]]))
    bank.append(2, [], np.zeros((0, 3)))
    bank.append(3, entries(3, 2), unit_rows([[0, 1, 0], [0.6, 0, 0.8]]))
    first, empty, last = memory_stats.memory_stats(bank).iterations
    assert (first.entries, empty.entries, last.entries) == (3, 0, 2)
    assert first.share_mean == pytest.approx((0.3 + 0.4 + 0.5) / 3)
    assert first.within_mean == pytest.approx(1 / 3)
    assert first.within_nearest == pytest.approx(2 / 3)  # 1, 1 and 0
    assert (first.earlier_mean, first.earlier_nearest, first.earlier_max) == (None, None, None)
    assert (empty.share_mean, empty.within_mean, empty.within_nearest, empty.earlier_max) == (None,) * 4
    assert last.within_mean == pytest.approx(0, abs=1e-7)
    assert last.earlier_mean == pytest.approx((1 / 3 + 1.2 / 3) / 2, abs=1e-6)
    assert last.earlier_nearest == pytest.approx((1 + 0.6) / 2, abs=1e-6)
    assert last.earlier_max == pytest.approx(1)


def test_an_iteration_of_one_question(tmp_path: Path) -> None:
    bank = MemoryBank.open(tmp_path, "m", 2)
    bank.append(1, entries(1, 1), random_rows(1, 2))
    only = memory_stats.memory_stats(bank).iterations[0]
    assert (only.within_mean, only.within_nearest) == (None, None)


def test_means_and_nearest_by_all_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_stats, "_BLOCK_NUMBERS", 200)
    rows = random_rows(60, 8)
    bank = MemoryBank.open(tmp_path, "m", 8)
    bank.append(1, entries(1, 60), rows)
    only = memory_stats.memory_stats(bank).iterations[0]
    cosine_NN = rows.astype(np.float64) @ rows.T
    np.fill_diagonal(cosine_NN, np.nan)
    assert only.within_mean == pytest.approx(np.nanmean(cosine_NN), abs=1e-6)
    assert only.within_nearest == pytest.approx(np.nanmax(cosine_NN, axis=1).mean(), abs=1e-6)


def test_large_iterations_are_sampled_evenly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Three of five: the first, the middle and the last, whose nearest are 1, 0.6 and 0.8."""
    monkeypatch.setattr(memory_stats, "SAMPLED", 3)
    rows = unit_rows([[1, 0, 0], [1, 0, 0], [0.6, 0, 0.8], [0, 1, 0], [0, 0.8, -0.6]])
    bank = MemoryBank.open(tmp_path, "m", 3)
    bank.append(1, entries(1, 5), rows)
    assert memory_stats.memory_stats(bank).iterations[0].within_nearest == pytest.approx((1 + 0.6 + 0.8) / 3)


def test_labels_shares_and_repetitions(tmp_path: Path) -> None:
    shares, labels = [0.3, 0.7, 0.30000001, 1.0, 0.0], ["", "12", "x+1", "7", "a long label"]
    kept = [
        replace(remembered(1, k), share=share, label=label, question="same" if k < 2 else str(k), code="c")
        for k, (share, label) in enumerate(zip(shares, labels, strict=True))
    ]
    bank = MemoryBank.open(tmp_path, "m", 2)
    bank.append(1, kept, random_rows(5, 2))
    stats = memory_stats.memory_stats(bank)
    assert stats.shares == [1, 0, 0, 2, 0, 0, 0, 1, 0, 1]
    assert stats.label_characters == (0, 2, 12)
    assert (stats.repeated_questions, stats.repeated_codes) == (1, 4)
    assert stats.vector_lengths == pytest.approx((1, 1))


def test_an_empty_memory(tmp_path: Path) -> None:
    stats = memory_stats.memory_stats(MemoryBank.open(tmp_path, "m", 2))
    assert (stats.entries, stats.iterations, stats.label_characters, stats.vector_lengths) == (
        0,
        [],
        None,
        None,
    )
