"""Whether questions of an iteration were asked before, in earlier iterations.

Legend: N questions of one iteration, U iterations up to and with it, D dimensions of a vector (unit rows).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megatron_srpo.selfplay.spread import Vectors

_BLOCK = 1024  # questions compared at a time, so that no matrix of pool x history is held


@dataclass(frozen=True)
class Nearest:
    """The nearest question of every iteration so far, for each question of the last of them.

    Attributes:
        cosine_NU: -inf where an iteration has no (other) question.
        place_NU: place of that question in its iteration.
    """

    cosine_NU: NDArray[np.float64]
    place_NU: NDArray[np.intp]

    def near_shares(self, near: float) -> list[float]:
        """Return, per iteration, the share of the questions that have one at least so near there."""
        return [float(share) for share in (self.cosine_NU >= near).mean(axis=0)]

    def earlier(self) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
        """Return each question's cosine to the nearest one of all earlier iterations, and which iteration."""
        past_NU = self.cosine_NU[:, :-1]
        which_N = past_NU.argmax(axis=1)
        return past_NU[np.arange(len(past_NU)), which_N], which_N


def nearest(history: Sequence[Vectors]) -> Nearest:
    """Compare the questions of the last iteration with those of every iteration, itself among them.

    Args:
        history: [N, D] per iteration; the last one is asked about. A question is not its own neighbour.
    """
    new_ND = history[-1]
    cosines, places = [], []
    for iteration, old_ND in enumerate(history):
        cosine_N, place_N = _nearest_in(new_ND, old_ND, own=iteration == len(history) - 1)
        cosines.append(cosine_N)
        places.append(place_N)
    return Nearest(np.stack(cosines, axis=1), np.stack(places, axis=1))


def seen_before(labels: Sequence[NDArray[np.integer]]) -> list[float | None]:
    """Return, per iteration, the share of its questions whose cluster holds one of an earlier iteration.

    Args:
        labels: per iteration, the labels of its questions in a clustering of all iterations together.

    Returns:
        None for iterations without questions and for the first one with any: nothing was before it.
    """
    shares: list[float | None] = []
    seen: set[int] = set()
    for labels_N in labels:
        known = [int(label) in seen for label in labels_N]
        shares.append(sum(known) / len(known) if known and seen else None)
        seen.update(int(label) for label in labels_N)
    return shares


def overlap(left_N: NDArray[np.integer], right_M: NDArray[np.integer]) -> float | None:
    """Return what two sets of questions have in common as shares of clusters: the sum of the smaller shares.

    1 where clusters have equal shares in both, 0 where no cluster is in both; None where a set is empty.
    Samples of one distribution stay below 1, the more so the fewer questions there are per cluster.
    """
    if not len(left_N) or not len(right_M):
        return None
    clusters = int(max(left_N.max(), right_M.max())) + 1
    shares = [np.bincount(labels, minlength=clusters) / len(labels) for labels in (left_N, right_M)]
    return float(np.minimum(*shares).sum())


def _nearest_in(
    new_ND: Vectors, old_ND: Vectors, *, own: bool
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    count = len(new_ND)
    cosine_N, place_N = np.full(count, -np.inf), np.zeros(count, dtype=np.intp)
    for start in range(0, count if len(old_ND) else 0, _BLOCK):
        block_BD = new_ND[start : start + _BLOCK]
        cosine_BO = np.clip((block_BD @ old_ND.T).astype(np.float64), -1.0, 1.0)
        rows = np.arange(len(block_BD))
        if own:
            cosine_BO[rows, start + rows] = -np.inf
        place_N[start : start + _BLOCK] = cosine_BO.argmax(axis=1)
        cosine_N[start : start + _BLOCK] = cosine_BO.max(axis=1)
    return cosine_N, place_N
