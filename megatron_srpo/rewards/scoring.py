"""Scoring one response: what is the same for every verifier, inside and outside the pool."""

import math
from dataclasses import replace

from megatron_srpo.config.reward import RewardConfig
from megatron_srpo.data.types import Prompt
from megatron_srpo.rewards.registry import Verifier
from megatron_srpo.rewards.types import Score

_ERROR_CHARACTERS = 300


def too_long(response: str, config: RewardConfig) -> Score | None:
    """Return the score of a response that is too long to be looked at, else None."""
    if len(response) <= config.max_answer_characters:
        return None
    return failed(
        f"the response has {len(response)} characters; the most is "
        f"reward.max_answer_characters = {config.max_answer_characters}"
    )


def score_response(verifier: Verifier, prompt: Prompt, response: str, config: RewardConfig) -> Score:
    """Run the verifier and bring its result into the configured form. An exception becomes a score of 0."""
    try:
        result = verifier.verify(prompt, response)
        score = result if isinstance(result, Score) else Score(float(result))
        return _finish(score, config)
    except Exception as error:  # boundary: verifiers are third-party code that runs on whatever a model wrote
        return failed(f"{type(error).__name__}: {error}")


def failed(reason: str) -> Score:
    """Return the score of a response that could not be scored."""
    return Score(0.0, error=reason[:_ERROR_CHARACTERS])


def _finish(score: Score, config: RewardConfig) -> Score:
    value = float(score.value)
    if not math.isfinite(value):
        return failed(f"the verifier returned {value}")
    if config.binary:
        value = float(value >= config.threshold)
    return replace(score, value=value, feedback=score.feedback if config.environment_feedback else None)
