"""The result of scoring one response."""

from dataclasses import dataclass

#: Remarks for the self-teacher; they never contain the answer.
NO_ANSWER = "No final answer was found."
WRONG_ANSWER = "The final answer is wrong."


@dataclass(frozen=True)
class Score:
    """Reward of one response.

    Attributes:
        value: the reward; 0 is wrong, 1 is right.
        feedback: a short remark on what was wrong, without the answer.
        error: why the response could not be scored properly (time limit, failing verifier, too long); value
            is then 0.
    """

    value: float
    feedback: str | None = None
    error: str | None = None
