"""The verifier "exact": the final answer equals the gold answer as text."""

from megatron_srpo.data.types import Prompt
from megatron_srpo.rewards.extract import final_answer
from megatron_srpo.rewards.types import NO_ANSWER, WRONG_ANSWER, Score


def verify(prompt: Prompt, response: str) -> Score:
    """Score 1 when the final answer and the gold answer agree up to white space."""
    answer = final_answer(response)
    if answer is None:
        return Score(0.0, feedback=NO_ANSWER)
    if answer.text.split() == (prompt.answer or "").split():
        return Score(1.0)
    return Score(0.0, feedback=WRONG_ANSWER)
