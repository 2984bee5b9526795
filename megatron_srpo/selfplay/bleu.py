"""Likeness of questions by their words: sentence BLEU, as R-Zero measures repetition (arXiv 2508.05004).

BLEU-4 with smoothing method 1 over words split at whitespace, in the numbers of nltk's ``sentence_bleu``. It
is computed for all pairs at once: nltk counts n-grams anew for every pair (docs/measurements.md). Against
R-Zero's released code two things differ: the two directions of a pair are averaged, as one alone depends on
which question comes first; and two questions of the same words have similarity 1, which BLEU itself does not
give to questions of fewer than four words.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_srpo.selfplay.extra import import_extra

_ORDERS = (1, 2, 3, 4)
_EPSILON = 0.1  # method 1 of nltk: what stands for no n-gram in common
_BLOCK = 1024


def bleu_similarity(questions: Sequence[str]) -> NDArray[np.float64]:
    """Return the mean of BLEU in both directions for every pair of questions.

    Returns:
        A symmetric matrix ``NN`` in [0, 1] with ones on its diagonal.
    """
    words = [tuple(question.split()) for question in questions]
    different = list(dict.fromkeys(words))
    place = {tokens: index for index, tokens in enumerate(different)}
    order_N = np.array([place[tokens] for tokens in words], np.int64)
    return _similarity(different)[np.ix_(order_N, order_N)]


def _similarity(texts: Sequence[tuple[str, ...]]) -> NDArray[np.float64]:
    """Return the similarity of texts that all differ."""
    one_way_NN = np.zeros((len(texts), len(texts)))
    features = [_features(texts, order) for order in _ORDERS]
    lengths_N = np.array([len(text) for text in texts], np.float64)
    for start in range(0, len(texts), _BLOCK):
        rows = slice(start, start + _BLOCK)
        shared = [(feature[rows] @ feature.T).toarray() for feature in features]
        one_way_NN[rows] = _bleu(shared, lengths_N[rows], lengths_N)
    both_NN = (one_way_NN + one_way_NN.T) / 2
    np.fill_diagonal(both_NN, 1.0)
    return both_NN


def _features(texts: Sequence[tuple[str, ...]], order: int) -> Any:
    """Return a sparse matrix whose rows' products are the clipped counts of n-grams in common.

    The k-th occurrence of an n-gram in a text is a feature of its own: two texts then share as many of an
    n-gram's features as the smaller of its two counts.
    """
    columns: dict[tuple[tuple[str, ...], int], int] = {}
    indices: list[int] = []
    ends = [0]
    for text in texts:
        indices += [columns.setdefault(feature, len(columns)) for feature in _occurrences(text, order)]
        ends.append(len(indices))
    shape = (len(texts), max(1, len(columns)))
    return import_extra("scipy.sparse").csr_matrix((np.ones(len(indices)), indices, ends), shape=shape)


def _occurrences(text: tuple[str, ...], order: int) -> Iterator[tuple[tuple[str, ...], int]]:
    seen: Counter[tuple[str, ...]] = Counter()
    for start in range(len(text) - order + 1):
        gram = text[start : start + order]
        yield gram, seen[gram]
        seen[gram] += 1


def _bleu(
    shared: Sequence[NDArray[np.float64]], length_R: NDArray[np.float64], length_N: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return BLEU of hypotheses (rows) against references (columns).

    Args:
        shared: by order of n-gram, the clipped number of n-grams in common, ``RN``.
        length_R: words of the hypotheses.
        length_N: words of the references.
    """
    log_RN = np.zeros_like(shared[0])
    for order, shared_RN in zip(_ORDERS, shared, strict=True):
        grams_R1 = np.maximum(1.0, length_R - order + 1)[:, None]
        log_RN += np.log(np.where(shared_RN == 0, _EPSILON, shared_RN) / grams_R1) / len(_ORDERS)
    brevity_RN = np.minimum(0.0, 1.0 - length_N[None, :] / np.maximum(1.0, length_R)[:, None])
    return np.where(shared[0] == 0, 0.0, np.exp(log_RN + brevity_RN))
