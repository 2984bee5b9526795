"""What a Challenger is asked, and the question in its answer."""

from dataclasses import dataclass
from typing import Any

from megatron_srpo.config.data import SourceConfig
from megatron_srpo.config.self_play import SelfPlayPromptConfig
from megatron_srpo.data.types import Prompt
from megatron_srpo.errors import RewardError
from megatron_srpo.rewards.extract import boxed, visible_text
from megatron_srpo.selfplay.folders import CHALLENGER, IterationFolder

#: Verifier that a Challenger's prompts name.
UNSCORED = "megatron_srpo.selfplay.questions:unscored"
#: Verifier of the Solver's answers.
SOLVER_TASK = "math"

_OPENING, _CLOSING = "<question>", "</question>"


@dataclass(frozen=True)
class Written:
    """A well-formed answer of the Challenger: a question, and what the Challenger holds for its answer."""

    question: str
    own_answer: str


def parse_question(response: str, config: SelfPlayPromptConfig) -> Written | None:
    r"""Return the last ``<question>`` element of a response; None where the response is malformed.

    It must be closed and followed by ``\boxed{...}``, and the question must be neither empty nor longer than
    ``max_question_characters``. Thoughts and special tokens are cut out first.
    """
    text = visible_text(response)
    if text is None:
        return None
    before, closing, after = text.rpartition(_CLOSING)
    _, opening, question = before.rpartition(_OPENING)
    answer = boxed(after)
    question = question.strip()
    if not (closing and opening and question and answer):
        return None
    if len(question) > config.max_question_characters:
        return None
    return Written(question, answer)


def challenger_messages(config: SelfPlayPromptConfig) -> tuple[dict[str, str], ...]:
    """Return the chat that asks for a question."""
    return _chat(config.challenger_system, config.challenger_user)


def solver_prompt(question: str, config: SelfPlayPromptConfig, label: str | None = None) -> Prompt:
    """Return the prompt that puts a question to the Solver; its id is the question."""
    messages = _chat(config.solver_system, question + config.solver_suffix)
    return Prompt(question, messages, label, SOLVER_TASK, {"question": question}, "self_play")


def prompt_source(config: SelfPlayPromptConfig, role: str, folder: IterationFolder) -> SourceConfig:
    """Return where a role's training run finds its prompts, and how they are put."""
    writes = role == CHALLENGER
    return SourceConfig(
        kind="jsonl",
        name="self_play",
        path=str(folder.prompts(role)),
        task=UNSCORED if writes else SOLVER_TASK,
        system=config.challenger_system if writes else config.solver_system,
        prompt_suffix="" if writes else config.solver_suffix,
        answer_column=None if writes else "answer",
        id_column="id",
    )


def _chat(system: str | None, user: str) -> tuple[dict[str, str], ...]:
    first = () if system is None else ({"role": "system", "content": system},)
    return (*first, {"role": "user", "content": user})


def unscored(prompt: Prompt, response: str) -> Any:
    """Refuse: a Challenger's questions are scored as a batch, by the Solver (``selfplay/challenger.py``)."""
    raise RewardError(
        f"prompt {prompt.id!r} is a Challenger's and has no verifier; train it with megatron-srpo self-play"
    )
