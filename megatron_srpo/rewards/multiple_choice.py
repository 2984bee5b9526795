"""The verifier "multiple_choice": the exact letter in the last ``<answer>`` element, as in SDPO and SRPO."""

from megatron_srpo.data.types import Prompt
from megatron_srpo.rewards.extract import answer_element, visible_text
from megatron_srpo.rewards.types import WRONG_ANSWER, Score

NO_ELEMENT = "No final answer was found; the letter belongs inside <answer> </answer>."


def verify(prompt: Prompt, response: str) -> Score:
    """Score 1 when the last ``<answer>`` element holds the gold letter and nothing else."""
    letter = answer_element(visible_text(response) or "")
    if not letter:
        return Score(0.0, feedback=NO_ELEMENT)
    return Score(1.0) if letter == prompt.answer else Score(0.0, feedback=WRONG_ANSWER)
