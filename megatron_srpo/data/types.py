"""The prompt: what every room that touches data agrees on."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Prompt:
    """One question with what is needed to ask it and to score its answers.

    Attributes:
        id: stable and unique in its prompt set, such as ``"gcd/17"``.
        messages: chat messages, each with ``role`` and ``content``: optional system first, the user's last.
        answer: gold answer, or None where the verifier needs none.
        task: name of the verifier (``"math"``, ``"reasoning_gym"``, ``"package.module:function"``).
        metadata: what the verifier needs beyond the answer.
        source: name of the source; metrics are reported per source.
    """

    id: str
    messages: tuple[dict[str, str], ...]
    answer: str | None
    task: str
    metadata: dict[str, Any] = field(default_factory=dict)
    source: str = ""

    @property
    def question(self) -> str:
        """Text of the last user message."""
        return self.messages[-1]["content"]
