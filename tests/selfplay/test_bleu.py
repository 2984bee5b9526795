"""BLEU of all pairs at once equals nltk's, pair by pair."""

import random

import numpy as np
import pytest

from megatron_srpo.selfplay import bleu
from megatron_srpo.selfplay.bleu import bleu_similarity

pytest.importorskip("scipy", reason="needs scikit-learn (make install-self-play)")

REAL = [
    "A bakery sells 12 muffins in the morning and 7 in the afternoon. How many muffins does it sell?",
    "A bakery sells 30 loaves in the morning and 4 in the afternoon. How many loaves does it sell?",
    "Let $x$ and $y$ be real numbers with $x + y = 10$ and $xy = 21$. Find $x^2 + y^2$.",
    "Let $a$ and $b$ be real numbers with $a + b = 7$ and $ab = 12$. Find $a^2 + b^2$.",
    "the the the the the the",
    "the cat the cat the dog",
    "Find x.",
    "Find",
    "",
    "¿Cuánto es 7 por 8? \ud800 \u2028 end",
]


def by_nltk(questions: list[str]) -> np.ndarray:
    """Both directions of every pair by the library, averaged; equal words are wholly alike."""
    score = pytest.importorskip("nltk.translate.bleu_score", reason="needs nltk (make install-self-play)")
    method1 = score.SmoothingFunction().method1
    words = [question.split() for question in questions]
    similarity_NN = np.ones((len(words), len(words)))
    for i, one in enumerate(words):
        for j, other in enumerate(words):
            if one != other:
                both = (
                    score.sentence_bleu([one], other, smoothing_function=method1),
                    score.sentence_bleu([other], one, smoothing_function=method1),
                )
                similarity_NN[i, j] = sum(both) / 2
    return similarity_NN


def test_real_questions_as_nltk_has_them() -> None:
    np.testing.assert_allclose(bleu_similarity(REAL), by_nltk(REAL), rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_random_texts_as_nltk_has_them(seed: int) -> None:
    """Few words: n-grams of all orders are shared, repeated and clipped; also short and empty texts."""
    generator = random.Random(seed)
    texts = [
        " ".join(generator.choices("abcde", k=generator.choice([0, 1, 2, 3, 4, 9, 25]))) for _ in range(30)
    ]
    np.testing.assert_allclose(bleu_similarity(texts), by_nltk(texts), rtol=0, atol=1e-12)


def test_by_hand() -> None:
    """One word of five differs: n-grams in common 4/5, 3/4, 2/3, 1/2, lengths equal."""
    similarity_NN = bleu_similarity(["a b c d e", "a b c d f"])
    expected = (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    np.testing.assert_allclose(similarity_NN, [[1, expected], [expected, 1]], rtol=1e-14)


def test_smoothing_and_brevity_by_hand() -> None:
    """``a b`` against ``a c d``: one shared word, no shared pair; 0.1 stands for each count of zero."""
    forth = np.exp(1 - 3 / 2) * (1 / 2 * 0.1 / 1 * 0.1 / 1 * 0.1 / 1) ** 0.25
    back = (1 / 3 * 0.1 / 2 * 0.1 / 1 * 0.1 / 1) ** 0.25
    assert bleu_similarity(["a b", "a c d"])[0, 1] == pytest.approx((forth + back) / 2, rel=1e-14)


def test_equal_short_questions_are_wholly_alike() -> None:
    """BLEU itself gives 0.18 to ``Add 3.`` twice, and it would pass for two different questions."""
    np.testing.assert_array_equal(
        bleu_similarity(["2 + 2", "2  +  2", "", " "]), np.kron(np.eye(2), np.ones((2, 2)))
    )


def test_no_question_and_one() -> None:
    assert bleu_similarity([]).shape == (0, 0)
    assert bleu_similarity(["one"]).tolist() == [[1.0]]


def test_the_order_and_the_blocks_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    whole_NN = bleu_similarity(REAL)
    np.testing.assert_array_equal(whole_NN, whole_NN.T)
    order = np.random.default_rng(0).permutation(len(REAL))
    monkeypatch.setattr(bleu, "_BLOCK", 3)
    np.testing.assert_array_equal(bleu_similarity([REAL[k] for k in order]), whole_NN[np.ix_(order, order)])
