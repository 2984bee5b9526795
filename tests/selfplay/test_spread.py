"""Clusters and pairs within an iteration, against numbers worked out by hand."""

import math

import numpy as np
import pytest

from megatron_srpo.selfplay.spread import cosine_distance, evenly, mean_pair_cosine, spread


def unit(*rows: list[float]) -> np.ndarray:
    matrix = np.array(rows, np.float32)
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def test_equal_clusters_are_all_effective() -> None:
    found = spread(np.array([0, 1, 2, 3, 3, 2, 1, 0]))
    assert found is not None
    assert (found.clusters, found.largest_share) == (4, 0.25)
    assert found.effective == pytest.approx(4.0, rel=1e-12)


def test_unequal_clusters_are_fewer_effectively() -> None:
    found = spread(np.array([7, 7, 7, 2]))
    assert found is not None
    assert (found.clusters, found.largest_share) == (2, 0.75)
    assert found.effective == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))


def test_no_question_has_no_spread() -> None:
    assert spread(np.array([], np.int64)) is None
    assert spread(np.array([5])).effective == 1.0  # type: ignore[union-attr]


def test_mean_cosine_of_three() -> None:
    """Cosines 1/sqrt(2), 0 and 1/sqrt(2)."""
    vectors_ND = unit([1, 0], [1, 1], [0, 1])
    assert mean_pair_cosine(vectors_ND) == pytest.approx(2 / 3 / math.sqrt(2), rel=1e-6)
    assert mean_pair_cosine(vectors_ND[:1]) is None


def test_mean_cosine_equals_the_mean_over_pairs() -> None:
    vectors_ND = unit(*np.random.default_rng(1).normal(size=(40, 5)).tolist())
    upper = np.triu_indices(40, 1)
    dense = (vectors_ND.astype(np.float64) @ vectors_ND.astype(np.float64).T)[upper].mean()
    assert mean_pair_cosine(vectors_ND) == pytest.approx(dense, rel=1e-12)


def test_distances_can_be_clustered() -> None:
    """Symmetric to the last bit, not negative, and 0 to itself, although rounding alone grants none of it."""
    vectors_ND = unit(*np.random.default_rng(2).normal(size=(50, 7)).tolist())
    vectors_ND[1] = vectors_ND[0]
    distance_NN = cosine_distance(vectors_ND)
    assert np.array_equal(distance_NN, distance_NN.T)
    assert distance_NN.min() == 0.0 and not distance_NN.diagonal().any()
    assert distance_NN[0, 1] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(("count", "limit", "places"), [(3, 5, [0, 1, 2]), (10, 4, [0, 2, 5, 7]), (0, 3, [])])
def test_samples_are_spread_evenly(count: int, limit: int, places: list[int]) -> None:
    assert evenly(count, limit).tolist() == places


def test_a_sample_holds_nothing_twice() -> None:
    assert len(set(evenly(4001, 4000).tolist())) == 4000
