"""What was asked before: nearest old questions and clusters seen, against numbers worked out by hand."""

import numpy as np
import pytest

from megatron_srpo.selfplay import recurrence
from megatron_srpo.selfplay.recurrence import nearest, overlap, seen_before

AXES = np.eye(4, dtype=np.float32)


def test_the_nearest_question_of_every_iteration() -> None:
    half = np.array([[0.6, 0.8, 0.0, 0.0]], np.float32)
    history = [AXES[[0, 1]], half, np.concatenate([AXES[[1]], half, AXES[[3]]])]
    found = nearest(history)
    assert found.cosine_NU == pytest.approx(np.array([[1, 0.8, 0.8], [0.8, 1, 0.8], [0, 0, 0]]), abs=1e-6)
    assert found.place_NU[:2].tolist() == [[1, 0, 1], [1, 0, 0]]
    cosine_N, which_N = found.earlier()
    assert cosine_N == pytest.approx([1, 1, 0], abs=1e-6)
    assert which_N.tolist() == [0, 1, 0]


def test_near_shares_count_from_the_threshold_on() -> None:
    found = nearest([AXES[[0]], AXES[[0, 0, 1, 2]]])
    assert found.near_shares(0.9) == [0.5, 0.5], "in its own iteration a question is not its own neighbour"
    assert found.near_shares(0.0) == [1.0, 1.0]


def test_a_single_question_has_no_neighbour_in_its_own_iteration() -> None:
    assert nearest([AXES[[0]]]).near_shares(0.9) == [0.0]


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors_ND = np.random.default_rng(3).normal(size=(60, 6)).astype(np.float32)
    vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    whole = nearest([vectors_ND[:20], vectors_ND[20:]])
    monkeypatch.setattr(recurrence, "_BLOCK", 7)
    parts = nearest([vectors_ND[:20], vectors_ND[20:]])
    assert parts.place_NU.tolist() == whole.place_NU.tolist()
    assert parts.cosine_NU == pytest.approx(whole.cosine_NU, abs=1e-6)


def test_seen_clusters() -> None:
    labels = [np.array([0, 0, 1]), np.array([1, 2, 2, 2]), np.array([], np.int64), np.array([2, 3])]
    assert seen_before(labels) == [None, 0.25, None, 0.5]


@pytest.mark.parametrize(
    ("left", "right", "common"),
    [
        ([0, 0, 1, 2], [0, 1, 1, 3], 0.25 + 0.25),
        ([0, 0, 1, 1], [1, 0], 1.0),
        ([0, 0], [1, 1, 5], 0.0),
        ([], [1], None),
        ([1], [], None),
    ],
)
def test_overlap_is_the_sum_of_the_smaller_shares(
    left: list[int], right: list[int], common: float | None
) -> None:
    assert overlap(np.array(left, np.int64), np.array(right, np.int64)) == common
