"""The Challenger's reward: uncertainty of the Solver, less repetition in the batch and of the memory.

Sources: R-Zero (arXiv 2508.05004), R-Diverse (arXiv 2602.13103). With ``repetition=bleu``, ``memory=false``
and ``floor_at_zero=true`` it is R-Zero's. Numbers are float64. What a question gets does not depend on its
place in the batch: what lies between questions is computed over the different ones in order of their text.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megatron_srpo.config.self_play import ChallengerRewardConfig
from megatron_srpo.selfplay.bleu import bleu_similarity
from megatron_srpo.selfplay.clusters import cluster_labels, cluster_sizes
from megatron_srpo.selfplay.memory import MemoryBank

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RewardTerms:
    """The parts of a batch's rewards, as they enter: ``reward = uncertainty - repetition - memory``.

    Attributes:
        uncertainty: 0 for malformed questions, as in the other parts.
        repetition: batch repetition penalty times its weight.
        memory: memory-augmented penalty (MAP).
        reward: the sum; raised to 0 where configured; the fixed reward of malformed questions.
    """

    uncertainty: Floats
    repetition: Floats
    memory: Floats
    reward: Floats


def uncertainty(share_N: Floats, form: str) -> Floats:
    """Return how undecided the Solver is, from the share of its most common answer.

    Args:
        form: ``min``: min(s, 1 - s), R-Diverse and R-Zero's code; ``tent``: 1 - 2 |s - 1/2|, R-Zero's paper.
    """
    if form == "tent":
        return 1 - 2 * np.abs(share_N - 0.5)
    return np.minimum(share_N, 1 - share_N)


def repetition_penalty(distance_NN: Floats, threshold: float, keys: Sequence[str], batch: int) -> Floats:
    """Return for every question its cluster's share of the batch.

    Args:
        distance_NN: of the well-formed questions.
        keys: see :func:`~megatron_srpo.selfplay.clusters.cluster_labels`.
        batch: number of questions, malformed ones included.
    """
    return cluster_sizes(cluster_labels(distance_NN, threshold, keys)) / max(1, batch)


def memory_penalty(max_N: Floats, mean_N: Floats, config: ChallengerRewardConfig) -> Floats:
    """Return the memory-augmented penalty of questions.

    Args:
        max_N: cosine to the nearest memory.
        mean_N: mean cosine to the memory.
    """
    over_max_N = np.maximum(0.0, max_N - config.max_threshold)
    over_mean_N = np.maximum(0.0, mean_N - config.mean_threshold)
    return config.max_weight * over_max_N + config.mean_weight * over_mean_N


def challenger_rewards(
    config: ChallengerRewardConfig,
    questions: Sequence[str | None],
    share: Sequence[float | None],
    vectors_ND: NDArray[np.floating] | None,
    memory: MemoryBank | None,
    iteration: int,
) -> RewardTerms:
    """Reward a batch of the Challenger's questions.

    Args:
        questions: None for a malformed one.
        share: of the Solver's most common answer; None where no answer of the Solver's could be read.
        vectors_ND: skill vectors of unit length, equal for equal questions; rows of malformed ones are not
            looked at. None where no term is measured by skill.
        memory: None where it costs nothing to repeat it.
        iteration: only entries of earlier iterations are looked at.
    """
    wellformed_N = np.array([question is not None for question in questions], bool)
    share_N = np.array([0.0 if value is None else value for value in share], np.float64)
    batch = _Batch.of(questions, vectors_ND)
    uncertainty_N = np.where(wellformed_N, uncertainty(share_N, config.uncertainty), 0.0)
    repetition_N = batch.spread(config.repetition_weight * _repetition(config, batch))
    memory_N = batch.spread(_memory(config, batch, memory, iteration))
    reward_N = uncertainty_N - repetition_N - memory_N
    if config.floor_at_zero:
        reward_N = np.maximum(0.0, reward_N)
    return RewardTerms(
        uncertainty_N, repetition_N, memory_N, np.where(wellformed_N, reward_N, config.malformed)
    )


@dataclass(frozen=True)
class _Batch:
    """The different questions of a batch in order of their text.

    Attributes:
        size: questions of the batch, malformed and repeated ones included.
        texts: the different ones.
        times_U: how often each stands in the batch.
        place_N: where each question of the batch stands in ``texts``; -1 for a malformed one.
        vectors_UD: skill vectors of ``texts``.
    """

    size: int
    texts: list[str]
    times_U: NDArray[np.int64]
    place_N: NDArray[np.int64]
    vectors_UD: Floats | None

    @classmethod
    def of(cls, questions: Sequence[str | None], vectors_ND: NDArray[np.floating] | None) -> "_Batch":
        counts = Counter(question for question in questions if question is not None)
        texts = sorted(counts)
        index = {text: number for number, text in enumerate(texts)}
        place_N = np.array([-1 if text is None else index[text] for text in questions], np.int64)
        vectors_UD = None
        if vectors_ND is not None:
            first = {place: number for number, place in reversed(list(enumerate(place_N.tolist())))}
            rows_U = np.array([first[place] for place in range(len(texts))], np.int64)
            vectors_UD = np.asarray(vectors_ND, np.float64)[rows_U]
        times_U = np.array([counts[text] for text in texts], np.int64)
        return cls(len(questions), texts, times_U, place_N, vectors_UD)

    def spread(self, value_U: Floats) -> Floats:
        """Return the values of the batch's questions; 0 for malformed ones."""
        return np.append(value_U, 0.0)[self.place_N]

    def measured_UD(self) -> Floats:
        """Return the skill vectors.

        Raises:
            ValueError: there are none.
        """
        if self.vectors_UD is None:
            raise ValueError("a term of this reward is measured by skill, but no skill vectors were given")
        return self.vectors_UD


def _repetition(config: ChallengerRewardConfig, batch: _Batch) -> Floats:
    if config.repetition == "off" or not batch.texts:
        return np.zeros(len(batch.texts))
    distance_UU = 1 - _similarity_UU(config.repetition, batch)
    # Repeated questions weigh in the mean distance between clusters as often as they stand in the batch.
    rows = np.repeat(np.arange(len(batch.texts)), batch.times_U)
    keys = [batch.texts[row] for row in rows]
    distance_NN = distance_UU[np.ix_(rows, rows)]
    penalty = repetition_penalty(distance_NN, config.cluster_distance, keys, batch.size)
    return penalty[np.cumsum(batch.times_U) - 1]


def _similarity_UU(kind: str, batch: _Batch) -> Floats:
    if kind == "bleu":
        return bleu_similarity(batch.texts)
    vectors_UD = batch.measured_UD()
    similarity_UU = np.clip(vectors_UD @ vectors_UD.T, -1.0, 1.0)
    # A product of matrices need not be symmetric to the last bit, and a question is wholly like itself.
    similarity_UU = (similarity_UU + similarity_UU.T) / 2
    np.fill_diagonal(similarity_UU, 1.0)
    return similarity_UU


def _memory(
    config: ChallengerRewardConfig, batch: _Batch, memory: MemoryBank | None, iteration: int
) -> Floats:
    past = memory.before(iteration) if config.memory and memory is not None else None
    if not past or not batch.texts:
        return np.zeros(len(batch.texts))
    likeness = past.similarity(batch.measured_UD())
    return memory_penalty(likeness.max_N, likeness.mean_N, config)
