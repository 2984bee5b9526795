"""Clusters of questions: average linkage by hand, and the same clusters whatever the order."""

import numpy as np
import pytest

from megatron_srpo.selfplay.clusters import cluster_labels, cluster_sizes

pytest.importorskip("sklearn", reason="needs scikit-learn (make install-self-play)")


def from_pairs(count: int, pairs: dict[tuple[int, int], float], default: float = 1.0) -> np.ndarray:
    distance_NN = np.full((count, count), default)
    np.fill_diagonal(distance_NN, 0.0)
    for (row, column), value in pairs.items():
        distance_NN[row, column] = distance_NN[column, row] = value
    return distance_NN


def test_none_one_and_two() -> None:
    for count, threshold, expected in [(0, 0.5, []), (1, 0.5, [1]), (2, 0.3, [1, 1]), (2, 0.5, [2, 2])]:
        distance_NN = from_pairs(count, {(0, 1): 0.4} if count == 2 else {})
        labels_N = cluster_labels(distance_NN, threshold, ["a", "b"][:count])
        assert cluster_sizes(labels_N).tolist() == expected


def test_average_linkage_by_hand() -> None:
    """0 and 1 join at 0.2. Their mean distance to 2 is (0.4 + 0.7) / 2 = 0.55: single linkage would join."""
    distance_NN = from_pairs(3, {(0, 1): 0.2, (0, 2): 0.4, (1, 2): 0.7})
    keys = ["a", "b", "c"]
    assert cluster_sizes(cluster_labels(distance_NN, 0.5, keys)).tolist() == [2, 2, 1]
    assert cluster_sizes(cluster_labels(distance_NN, 0.56, keys)).tolist() == [3, 3, 3]


def test_a_pair_at_the_threshold_stays_apart() -> None:
    distance_NN = from_pairs(2, {(0, 1): 0.5})
    assert cluster_labels(distance_NN, 0.5, ["a", "b"]).tolist() == [0, 1]


def test_clusters_are_numbered_in_order_of_keys() -> None:
    distance_NN = from_pairs(4, {(0, 3): 0.1, (1, 2): 0.1})
    assert cluster_labels(distance_NN, 0.5, ["d", "a", "b", "c"]).tolist() == [1, 0, 0, 1]


def test_duplicates_are_together() -> None:
    distance_NN = from_pairs(5, {(0, 2): 0.0, (0, 4): 0.0, (2, 4): 0.0})
    labels_N = cluster_labels(distance_NN, 0.5, ["same", "x", "same", "y", "same"])
    assert cluster_sizes(labels_N).tolist() == [3, 1, 3, 1, 3]


def ring(count: int) -> np.ndarray:
    """Every question is as far from both its neighbours: nothing but order can break the ties."""
    return from_pairs(count, {(k, (k + 1) % count): 0.4 for k in range(count)})


@pytest.mark.parametrize("seed", range(20))
def test_the_order_decides_nothing_even_among_ties(seed: int) -> None:
    distance_NN, keys = ring(9), [f"question {k}" for k in range(9)]
    order = np.random.default_rng(seed).permutation(9)
    straight = cluster_labels(distance_NN, 0.5, keys)
    permuted = cluster_labels(distance_NN[np.ix_(order, order)], 0.5, [keys[k] for k in order])
    assert permuted.tolist() == straight[order].tolist()
    assert set(cluster_sizes(straight).tolist()) != {9}  # some tie was broken


def test_without_an_order_of_its_own_the_linkage_depends_on_positions() -> None:
    """What the test above guards against happens: scikit-learn itself joins other neighbours."""
    cluster = pytest.importorskip("sklearn.cluster")
    distance_NN, found = ring(9), set()
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(9)
        labels_N = cluster.AgglomerativeClustering(
            n_clusters=None, distance_threshold=0.5, metric="precomputed", linkage="average"
        ).fit_predict(distance_NN[np.ix_(order, order)])
        together = [order[labels_N == label].tolist() for label in set(labels_N.tolist())]
        found.add(frozenset(frozenset(members) for members in together))
    assert len(found) > 1
