"""Pairs that look different and are one skill, counted by hand."""

import numpy as np
import pytest

from megatron_srpo.selfplay.surface import pairs, surface_against_skill


def symmetric(values: list[float]) -> np.ndarray:
    """Three questions from the likeness of the pairs 01, 02, 12."""
    matrix = np.eye(3)
    for (left, right), value in zip(((0, 1), (0, 2), (1, 2)), values, strict=True):
        matrix[left, right] = matrix[right, left] = value
    return matrix


def test_pairs_are_counted_once() -> None:
    both = pairs(symmetric([0.1, 0.2, 0.3]), symmetric([0.4, 0.5, 0.6]))
    assert both.bleu_P.tolist() == [0.1, 0.2, 0.3]
    assert both.cosine_P.tolist() == [0.4, 0.5, 0.6]


def test_hidden_pairs() -> None:
    """One skill: 0.9 and 0.8; of these one is far in words (0.1), one is not (0.7)."""
    found = surface_against_skill(pairs(symmetric([0.1, 0.7, 0.2]), symmetric([0.9, 0.8, 0.3])), 0.5)
    assert found is not None
    assert (found.one_skill, found.far_one_skill, found.far_of_one_skill, found.alike) == (
        pytest.approx(2 / 3),
        pytest.approx(1 / 3),
        0.5,
        2,
    )


def test_at_the_threshold_a_pair_is_far_as_in_clustering() -> None:
    found = surface_against_skill(pairs(symmetric([0.5, 0.5, 0.5]), symmetric([0.5, 0.75, 0.25])), 0.5)
    assert found is not None
    assert (found.alike, found.far_of_one_skill) == (1, 1.0)


def test_without_pairs_there_is_no_share() -> None:
    assert surface_against_skill(pairs(np.ones((1, 1)), np.ones((1, 1))), 0.5) is None
    found = surface_against_skill(pairs(np.ones((2, 2)), np.eye(2)), 0.5)
    assert found is not None and found.far_of_one_skill is None
