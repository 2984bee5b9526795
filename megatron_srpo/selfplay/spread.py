"""How widely the questions of one iteration are spread over skills.

Legend: N questions, D dimensions of a skill vector (unit rows).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.floating]


@dataclass(frozen=True)
class Spread:
    """Clusters of some questions.

    Attributes:
        clusters: how many.
        effective: exp of the entropy (nats) of the cluster sizes: as many equal clusters are as mixed.
        largest_share: share of the questions that lie in the largest cluster.
    """

    clusters: int
    effective: float
    largest_share: float


def spread(labels_N: NDArray[np.integer]) -> Spread | None:
    """Return how questions are spread, from their cluster labels; None without questions."""
    if not len(labels_N):
        return None
    _, sizes = np.unique(labels_N, return_counts=True)
    shares = sizes / sizes.sum()
    entropy = -float((shares * np.log(shares)).sum())
    return Spread(len(sizes), math.exp(entropy), float(shares.max()))


def mean_pair_cosine(vectors_ND: Vectors) -> float | None:
    """Return the mean cosine over all pairs of different rows, exactly; None for fewer than two rows.

    Without forming the pairs: ``|sum of rows|^2`` holds every pair twice and every row with itself once.
    """
    count = len(vectors_ND)
    if count < 2:
        return None
    wide_ND = vectors_ND.astype(np.float64)
    total_D = wide_ND.sum(axis=0)
    return float((total_D @ total_D - (wide_ND * wide_ND).sum()) / (count * (count - 1)))


def cosine_distance(vectors_ND: Vectors) -> NDArray[np.float64]:
    """Return 1 - cosine of all pairs, symmetric, at least 0 and exactly 0 on the diagonal."""
    wide_ND = vectors_ND.astype(np.float64)
    distance_NN = np.clip(1.0 - wide_ND @ wide_ND.T, 0.0, 2.0)
    np.fill_diagonal(distance_NN, 0.0)
    return (distance_NN + distance_NN.T) / 2


def evenly(count: int, limit: int) -> NDArray[np.intp]:
    """Return at most ``limit`` places out of ``count``, ascending, spread evenly: the same at every call."""
    if count <= limit:
        return np.arange(count)
    return np.arange(limit) * count // limit
