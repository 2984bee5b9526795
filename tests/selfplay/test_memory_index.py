"""Likeness to a memory in blocks equals the dense products in float64."""

from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_srpo.selfplay import memory_index
from megatron_srpo.selfplay.memory_index import Similarity, similarity, vector_sum
from tests.selfplay.banks import random_rows, unit_rows


def dense(vectors_ND: np.ndarray, memory_MD: np.ndarray) -> Similarity:
    """All cosines at once, in float64."""
    cosine_NM = vectors_ND.astype(np.float64) @ memory_MD.astype(np.float64).T
    return Similarity(cosine_NM.max(1), cosine_NM.mean(1), cosine_NM.argmax(1))


def compared(vectors_ND: np.ndarray, memory_MD: np.ndarray, dtype: torch.dtype = torch.float32) -> Similarity:
    return similarity(vectors_ND, memory_MD, vector_sum(memory_MD), dtype=dtype)


@pytest.mark.parametrize("rows_of_a_block", [1, 7, 100, 1000])
def test_blocks_of_any_size_give_the_dense_numbers(
    rows_of_a_block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_index, "_BLOCK_NUMBERS", rows_of_a_block * 48)
    vectors_ND, memory_MD = random_rows(33, 48, seed=1), random_rows(100, 48, seed=2)
    found, expected = compared(vectors_ND, memory_MD), dense(vectors_ND, memory_MD)
    np.testing.assert_allclose(found.max_N, expected.max_N, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.mean_N, expected.mean_N, rtol=0, atol=1e-12)
    assert found.nearest_N.tolist() == expected.nearest_N.tolist()


def test_the_mean_of_many_alike_vectors_is_exact() -> None:
    """100,000 equal vectors: a running sum in float32 would be wrong in the fifth digit."""
    memory_MD = unit_rows([[1, 1, 1]]).repeat(100_000, axis=0)
    found = compared(memory_MD[:1], memory_MD)
    exact = float(memory_MD[0].astype(np.float64) @ memory_MD[0].astype(np.float64))
    assert found.mean_N[0] == pytest.approx(exact, abs=1e-12)
    naive = np.cumsum(memory_MD[:, 0], dtype=np.float32)[-1] / 1e5
    assert abs(naive - memory_MD[0, 0]) > 1e-5


def test_cosines_never_leave_their_range() -> None:
    memory_MD = random_rows(200, 1536, seed=3)
    found = compared(memory_MD, memory_MD)
    assert found.max_N.max() <= 1 and found.nearest_N.tolist() == list(range(200))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 1e-3), (torch.bfloat16, 1e-2)])
def test_half_precision_moves_cosines_a_little_and_the_mean_not_at_all(
    dtype: torch.dtype, tolerance: float
) -> None:
    vectors_ND, memory_MD = random_rows(20, 256, seed=1), random_rows(300, 256, seed=2)
    found, expected = compared(vectors_ND, memory_MD, dtype), dense(vectors_ND, memory_MD)
    np.testing.assert_allclose(found.max_N, expected.max_N, rtol=0, atol=tolerance)
    np.testing.assert_allclose(found.mean_N, expected.mean_N, rtol=0, atol=1e-12)
    assert found.max_N.dtype == np.float64


def test_the_nearest_of_equals_in_different_blocks_is_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_index, "_BLOCK_NUMBERS", 2)
    memory_MD = unit_rows([[0, 1], [1, 0], [1, 0], [0, 1]])
    assert compared(unit_rows([[1, 0], [0, 1]]), memory_MD).nearest_N.tolist() == [1, 0]


def test_all_cosines_below_zero() -> None:
    found = compared(unit_rows([[1, 0]]), unit_rows([[-1, 0], [-0.6, 0.8]]))
    np.testing.assert_allclose([found.max_N[0], found.mean_N[0]], [-0.6, -0.8], atol=1e-7)
    assert found.nearest_N.tolist() == [1]


def test_a_mapped_file_of_rows(tmp_path: Path) -> None:
    rows = random_rows(50, 16)
    rows.tofile(tmp_path / "rows")
    mapped = np.memmap(tmp_path / "rows", np.float32, "c", shape=(50, 16))
    np.testing.assert_array_equal(compared(rows[:5], mapped).max_N, compared(rows[:5], rows).max_N)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 1e-3)])
def test_on_a_gpu(dtype: torch.dtype, tolerance: float) -> None:
    vectors_ND, memory_MD = random_rows(64, 1536, seed=1), random_rows(5000, 1536, seed=2)
    found = similarity(vectors_ND, memory_MD, vector_sum(memory_MD), "cuda", dtype)
    np.testing.assert_allclose(found.max_N, dense(vectors_ND, memory_MD).max_N, rtol=0, atol=tolerance)
