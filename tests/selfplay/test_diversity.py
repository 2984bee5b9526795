"""Diversity of made-up questions whose every number can be worked out by hand (``made_up.py``)."""

import math

import numpy as np
import pytest

from megatron_srpo.selfplay.diversity import Diversity, Limits, measure_diversity
from tests.selfplay.made_up import DIMENSION, questions

pytest.importorskip("sklearn", reason="needs the extra self-play")


@pytest.fixture(scope="module")
def found() -> Diversity:
    return measure_diversity(*questions())


def test_clusters_by_hand(found: Diversity) -> None:
    assert found.curve("questions") == {1: 8, 2: 8, 3: 8}
    assert found.curve("skill/clusters") == {1: 2, 2: 2, 3: 3}
    assert found.curve("skill/largest_share") == {1: 0.5, 2: 0.75, 3: 0.5}
    uneven = math.exp(-0.25 * math.log(0.25) - 0.75 * math.log(0.75))
    three = math.exp(-0.5 * math.log(0.5) - 0.5 * math.log(0.25))
    assert found.curve("skill/effective_clusters") == pytest.approx({1: 2.0, 2: uneven, 3: three})


def test_likeness_by_hand(found: Diversity) -> None:
    """Of 28 pairs 6 + 6, 1 + 15 and 6 + 1 + 1 are of one skill; no two questions share a word."""
    assert found.curve("pairs/alike") == {1: 12, 2: 16, 3: 8}
    expected = {1: 12 / 28, 2: 16 / 28, 3: 8 / 28}
    for name in ("skill/cosine_mean", "pairs/one_skill", "pairs/far_one_skill"):
        assert found.curve(name) == pytest.approx(expected)
    assert found.curve("pairs/far_of_one_skill") == {1: 1.0, 2: 1.0, 3: 1.0}
    assert found.curve("surface/bleu_mean") == {1: 0.0, 2: 0.0, 3: 0.0}
    assert found.curve("surface/clusters") == {1: 8, 2: 8, 3: 8}
    assert found.curve("surface/skill_clusters") == {1: 2, 2: 2, 3: 3}


def test_recurrence_by_hand(found: Diversity) -> None:
    """Iteration 2 asks skill 0 (2 of 8) again, iteration 3 skills 0 and 2 (6 of 8)."""
    for name in ("recurrence/near", "recurrence/nearest_mean", "recurrence/seen_clusters"):
        assert found.curve(name) == {2: 0.25, 3: 0.75}
    assert found.curve("skill/new_clusters") == {1: 2, 2: 1, 3: 1}
    assert found.recurrence == {1: [1.0], 2: [0.25, 1.0], 3: [0.5, 0.75, 1.0]}


def test_overlap_by_hand(found: Diversity) -> None:
    """Shares of skills 0 to 3 in the three iterations, in eighths: 4 4 0 0, 2 0 6 0, 4 0 2 2."""
    assert found.overlap == {1: [1.0], 2: [0.25, 1.0], 3: [0.5, 0.5, 1.0]}
    assert found.curve("recurrence/overlap") == {2: 0.25, 3: 3 / 8 + 2 / 8}, "the past has 6 4 6 0 sixteenths"
    # Pairs of a new and an old question that are of one skill: 2 x 4 of 64, and 4 x 6 + 2 x 6 of 128.
    assert found.curve("recurrence/mean_cosine") == pytest.approx({2: 8 / 64, 3: 36 / 128})


def test_every_new_question_has_its_nearest_old_one(found: Diversity) -> None:
    assert [row["id"] for row in found.near] == [f"{t}/{place}" for t in (2, 3) for place in range(8)]
    same = [row for row in found.near if row["cosine"] == 1.0]
    assert [(row["id"], row["old_id"]) for row in same[:2]] == [("2/0", "1/0"), ("2/1", "1/0")]
    assert [(row["id"], row["old_id"], row["old_iteration"]) for row in same[-2:]] == [
        ("3/4", "2/2", 2),
        ("3/5", "2/2", 2),
    ]
    assert same[0]["code"] == same[0]["old_code"] == "def solver(a=1):\n    return a + 0"
    assert len(same) == 8 and all(row["bleu"] == 0.0 for row in found.near)


def test_words_of_a_pair_are_compared() -> None:
    """More rows than one block of pairs; one new question is an old one word by word."""
    entries, vectors_ND = questions(({0: 40}, {0: 70}))
    again = entries[40 + 50].__class__(**{**vars(entries[90]), "question": entries[0].question})
    found = measure_diversity([*entries[:90], again, *entries[91:]], vectors_ND)
    assert [row["bleu"] for row in found.near] == [0.0] * 50 + [1.0] + [0.0] * 19


def test_without_skills_only_words_are_compared() -> None:
    entries, _ = questions()
    found = measure_diversity(entries, None)
    assert found.near == [] and found.recurrence == {} and found.drawn == []
    assert set(found.rows[2]) == {"questions", "surface/sampled", "surface/clusters", "surface/bleu_mean"}


def test_samples_are_bounded() -> None:
    entries, vectors_ND = questions(({0: 30, 1: 30}, {0: 30, 1: 30}))
    found = measure_diversity(entries, vectors_ND, Limits(clustered=20, together=40, compared=10, drawn=30))
    assert found.rows[1]["skill/sampled"] == 20 and found.rows[1]["surface/sampled"] == 10
    assert found.rows[1]["skill/largest_share"] == 0.5
    assert found.rows[1]["pairs/alike"] == 20 and len(found.drawn) == 30
    assert found.curve("recurrence/near") == {2: 1.0}, "recurrence is counted over all questions"
    assert found.curve("recurrence/seen_clusters") == {2: 1.0}


def test_the_threshold_of_clusters_is_the_rewards() -> None:
    """Two skills at cosine 0.6."""
    entries, _ = questions(({0: 2, 1: 2},))
    vectors_ND = np.zeros((4, DIMENSION), np.float32)
    vectors_ND[:2, 0] = 1.0
    vectors_ND[2:, :2] = 0.6, 0.8
    for distance, clusters in ((0.5, 1), (0.3, 2)):
        found = measure_diversity(entries, vectors_ND, Limits(cluster_distance=distance))
        assert found.curve("skill/clusters") == {1: clusters}


@pytest.mark.parametrize("plan", [(), ({0: 1},), ({0: 1}, {1: 1})])
def test_hardly_any_question(plan: tuple[dict[int, int], ...]) -> None:
    found = measure_diversity(*questions(plan))
    assert found.curve("skill/clusters") == {t: 1 for t in range(1, len(plan) + 1)}
    assert found.curve("recurrence/near") == ({2: 0.0} if len(plan) == 2 else {})
    assert found.curve("pairs/one_skill") == {}


def test_the_order_of_questions_changes_no_number() -> None:
    entries, vectors_ND = questions()
    order = np.random.default_rng(4).permutation(len(entries))
    mixed = measure_diversity([entries[i] for i in order], vectors_ND[order])
    straight = measure_diversity(entries, vectors_ND)
    assert mixed.recurrence == straight.recurrence
    for name in ("skill/clusters", "recurrence/near", "recurrence/seen_clusters", "pairs/alike"):
        assert mixed.curve(name) == straight.curve(name)
