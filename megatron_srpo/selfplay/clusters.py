"""Groups of alike questions: agglomerative clustering with average linkage (R-Zero, arXiv 2508.05004).

The linkage of scikit-learn breaks ties by position. Questions are therefore put in an order of their own
before clustering, so that the order in which they arrive decides nothing.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from megatron_srpo.selfplay.extra import import_extra


def cluster_labels(
    distance_NN: NDArray[np.float64], threshold: float, keys: Sequence[str]
) -> NDArray[np.int64]:
    """Number the clusters that questions belong to.

    Two clusters are joined while the mean distance between their questions is below ``threshold``.

    Args:
        distance_NN: symmetric, zero on the diagonal; questions with equal keys have equal rows.
        keys: what the questions are ordered by, such as their text.

    Returns:
        A number from 0 for every question; clusters are numbered by their first question in order of keys,
        so they too do not depend on the order of the questions.
    """
    count = len(distance_NN)
    if count < 2:
        return np.zeros(count, np.int64)
    order = np.array(sorted(range(count), key=keys.__getitem__))
    clustering = import_extra("sklearn.cluster").AgglomerativeClustering(
        n_clusters=None, distance_threshold=threshold, metric="precomputed", linkage="average"
    )
    labels_N = np.empty(count, np.int64)
    labels_N[order] = _by_first(clustering.fit_predict(distance_NN[np.ix_(order, order)]))
    return labels_N


def cluster_sizes(labels_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for every question the number of questions in its cluster, itself included."""
    return np.bincount(labels_N)[labels_N] if len(labels_N) else labels_N


def _by_first(labels_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Renumber clusters in the order in which they first appear."""
    _, first, inverse_N = np.unique(labels_N, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse_N]
