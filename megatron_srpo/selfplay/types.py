"""What the parts of self-play hand to each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Skill:
    """A measured question.

    Attributes:
        code: the abstract function that was embedded, or whose operations were; where none could be had, the
            question itself.
        parsed: whether it is such a function.
        vector_D: of unit length, float32.
    """

    code: str
    parsed: bool
    vector_D: NDArray[np.float32]


class SkillMeasure(Protocol):
    """Maps questions to skills; equal questions to equal skills. Used on one rank."""

    @property
    def name(self) -> str:
        """What decides the vectors: coder and embedder. Vectors of other names cannot be compared."""
        ...

    @property
    def description(self) -> str:
        """What measures, for people: says plainly where something stands in for a model."""
        ...

    @property
    def dimension(self) -> int:
        """Length of the vectors."""
        ...

    def measure(self, questions: Sequence[str]) -> list[Skill]:
        """Return a skill per question, in order.

        Raises:
            UserError: the coder's engine or the embedding model fails; what was measured stays saved.
        """
        ...

    def close(self) -> None:
        """Free what was loaded or started. Idempotent."""
        ...


@dataclass(frozen=True)
class Remembered:
    """An entry of the memory bank: a question that was valid in its iteration.

    Attributes:
        id: unique in the bank, such as ``"3/1207"`` (iteration and place in the pool).
        label: the Solver's majority answer.
        share: of the Solver's answers that agreed with it.
        code: what was embedded.
    """

    id: str
    iteration: int
    question: str
    label: str
    share: float
    code: str
