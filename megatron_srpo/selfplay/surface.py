"""Whether questions that look different on the surface are one skill.

Legend: N questions, P pairs of them.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Pairs:
    """Likeness of pairs of questions on the surface (BLEU) and in skill (cosine)."""

    bleu_P: NDArray[np.float64]
    cosine_P: NDArray[np.float64]


@dataclass(frozen=True)
class SurfaceAgainstSkill:
    """Shares of pairs; a pair is alike where its distance is below the clusters' threshold.

    Attributes:
        one_skill: pairs alike in skill, of all pairs.
        far_one_skill: pairs alike in skill and not on the surface, of all pairs.
        far_of_one_skill: pairs not alike on the surface, of those alike in skill; None where there are none.
        alike: number of pairs alike in skill.
    """

    one_skill: float
    far_one_skill: float
    far_of_one_skill: float | None
    alike: int


def pairs(bleu_NN: NDArray[np.float64], cosine_NN: NDArray[np.float64]) -> Pairs:
    """Return every pair once, from two symmetric matrices of likeness."""
    upper = np.triu_indices(len(bleu_NN), 1)
    return Pairs(bleu_NN[upper], cosine_NN[upper])


def surface_against_skill(both: Pairs, distance: float) -> SurfaceAgainstSkill | None:
    """Count pairs at a threshold of distance; None without pairs."""
    if not len(both.bleu_P):
        return None
    one_skill_P = 1.0 - both.cosine_P < distance
    far_P = one_skill_P & (1.0 - both.bleu_P >= distance)
    alike, far = int(one_skill_P.sum()), int(far_P.sum())
    count = len(both.bleu_P)
    return SurfaceAgainstSkill(alike / count, far / count, far / alike if alike else None, alike)
