"""Exact likeness to a large memory: the nearest and the mean cosine, in matrix form and in blocks.

A million vectors of 1536 numbers are 6 GB; they stay in their file, of which a block at a time is read. The
mean cosine to all of them is the cosine product with their mean, which needs no matrix at all.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_BLOCK_NUMBERS = 1 << 24


@dataclass(frozen=True)
class Similarity:
    """How like some vectors are to a memory.

    Attributes:
        max_N: cosine to the nearest entry; 0 where the memory is empty.
        mean_N: mean cosine to all entries; 0 where the memory is empty.
        nearest_N: number of the nearest entry, the first of equals within rounding; -1 where there is none.
    """

    max_N: NDArray[np.float64]
    mean_N: NDArray[np.float64]
    nearest_N: NDArray[np.int64]


def vector_sum(memory_MD: NDArray[np.float32]) -> NDArray[np.float64]:
    """Add up the vectors of a memory in float64, block by block."""
    total_D = np.zeros(memory_MD.shape[1])
    for rows in _blocks(memory_MD):
        total_D += memory_MD[rows].sum(axis=0, dtype=np.float64)
    return total_D


def similarity(
    vectors_ND: NDArray[np.floating],
    memory_MD: NDArray[np.float32],
    sum_D: NDArray[np.float64],
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Similarity:
    """Compare vectors with every entry of a memory. All are of unit length.

    Args:
        sum_D: the memory's :func:`vector_sum`.
        device: where the products are formed; blocks of the memory are copied there one after another.
        dtype: of the products; half of float32's width is quicker on a GPU, and moves the cosines by up to
            about 1e-3.
    """
    count = len(vectors_ND)
    if not len(memory_MD):
        return Similarity(np.zeros(count), np.zeros(count), np.full(count, -1, np.int64))
    mean_N = np.asarray(vectors_ND, np.float64) @ sum_D / len(memory_MD)
    max_N, nearest_N = _nearest(torch.from_numpy(np.array(vectors_ND)).to(device, dtype), memory_MD)
    return Similarity(np.clip(max_N, -1.0, 1.0), mean_N, nearest_N)


def _nearest(
    vectors_ND: Tensor, memory_MD: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    count, device = len(vectors_ND), vectors_ND.device
    best_N = torch.full((count,), -torch.inf, dtype=vectors_ND.dtype, device=device)
    nearest_N = torch.full((count,), -1, dtype=torch.int64, device=device)
    for rows in _blocks(memory_MD):
        block_BD = torch.from_numpy(memory_MD[rows]).to(device, vectors_ND.dtype)
        value_N, place_N = (vectors_ND @ block_BD.T).max(dim=1)
        better_N = value_N > best_N
        best_N = torch.where(better_N, value_N, best_N)
        nearest_N = torch.where(better_N, place_N + rows.start, nearest_N)
    return best_N.double().cpu().numpy(), nearest_N.cpu().numpy()


def _blocks(memory_MD: NDArray[np.float32]) -> list[slice]:
    """Cut the rows of a memory into pieces of some ten million numbers."""
    size = max(1, _BLOCK_NUMBERS // max(1, memory_MD.shape[1]))
    return [slice(start, start + size) for start in range(0, len(memory_MD), size)]


def cosines(vector_D: NDArray[np.floating], memory_MD: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the cosine of one unit vector to every entry of a memory."""
    wanted_D = np.asarray(vector_D, np.float32)
    blocks = [memory_MD[rows] @ wanted_D for rows in _blocks(memory_MD)]
    return np.concatenate([np.zeros(0, np.float32), *blocks])
