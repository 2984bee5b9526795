"""What coders and embedders are to the measurement."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Rewrite:
    """A question as abstract code.

    Attributes:
        code: source of one function ``solver``; None where there is none.
        reason: why there is none.
    """

    code: str | None
    reason: str = ""


class Coder(Protocol):
    """Rewrites questions as code."""

    @property
    def name(self) -> str:
        """What decides the code: model and prompt, or rules and their version."""
        ...

    @property
    def description(self) -> str:
        """A few words for logs; says so where it stands in for a model."""
        ...

    def rewrite(self, questions: Sequence[str]) -> list[Rewrite]:
        """Return code per question, in order.

        Raises:
            UserError: what runs the model fails.
        """
        ...

    def embedded(self, code: str) -> str:
        """Return what of a code that it wrote the embedding model is given."""
        ...

    def close(self) -> None:
        """Free what was started. Idempotent."""
        ...


class Embedder(Protocol):
    """Turns texts into vectors."""

    @property
    def name(self) -> str:
        """What decides the vectors."""
        ...

    @property
    def description(self) -> str:
        """A few words for logs; says so where it stands in for a model."""
        ...

    @property
    def dimension(self) -> int:
        """Length of the vectors."""
        ...

    @property
    def chunk(self) -> int:
        """Texts of one call that are saved together."""
        ...

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return a row of unit length per text, ``[texts, dimension]``.

        Raises:
            UserError: the model cannot be loaded, or gives nothing that can be used.
        """
        ...

    def close(self) -> None:
        """Free what was loaded. Idempotent."""
        ...
