"""The coder model behind a rollout engine: greedy, with the chat template of its own tokenizer."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from megatron_srpo.config.model import ModelConfig
from megatron_srpo.config.rollout import RolloutConfig
from megatron_srpo.config.run import RunConfig
from megatron_srpo.config.self_play import CoderConfig
from megatron_srpo.data.chat import decode_response, render_prompt
from megatron_srpo.errors import ModelError
from megatron_srpo.rollout.types import Completion, Request, SamplingParams
from megatron_srpo.selfplay.skill import prompt
from megatron_srpo.selfplay.skill.identity import folder_digest
from megatron_srpo.selfplay.skill.parse import parse_code
from megatron_srpo.selfplay.skill.types import Rewrite
from megatron_srpo.session.frozen import FrozenModel


class EngineCoder:
    """A :class:`~megatron_srpo.selfplay.skill.types.Coder` that asks a language model.

    The engine starts with the first question and stays until :meth:`close`; servers that are lost are started
    again a few times. Code is text here: it is parsed and never executed.

    Args:
        logs: folder for the servers' logs.
        say: shows a line about the engine.

    Raises:
        ModelError: there is no such model folder.
    """

    def __init__(self, config: CoderConfig, logs: Path, say: Callable[[str], None]) -> None:
        if config.path is None or not Path(config.path).is_dir():
            raise ModelError(
                f"skill.coder.path = {config.path!r} is no folder; download the coder model, or set "
                "skill.coder.kind=rule_based"
            )
        self._config, self._folder, self._logs, self._say = config, Path(config.path), logs, say
        self._model: FrozenModel | None = None
        deciding = [folder_digest(self._folder), prompt.digest(), config.dtype]
        limits = [config.max_prompt_tokens, config.max_code_tokens]
        digest = hashlib.sha256(json.dumps([*deciding, *limits]).encode()).hexdigest()[:12]
        self._name = f"{self._folder.resolve().name}@{digest}"

    @property
    def name(self) -> str:
        """The model by its content, the prompt, the limits and the type of the weights; not the engine."""
        return self._name

    @property
    def description(self) -> str:
        """The model and its engine."""
        return f"coder model {self._folder} ({self._config.engine})"

    def rewrite(self, questions: Sequence[str]) -> list[Rewrite]:
        """Return code per question; a question that is too long and an answer that is no code have none.

        Raises:
            EngineError: the engine cannot be started, or was lost again and again.
            DataError: the tokenizer has no chat template.
        """
        model = self._opened()
        prompts = [render_prompt(model.tokenizer, prompt.messages(question), False) for question in questions]
        asked = {
            str(place): Request(str(place), tuple(tokens), seed=0)
            for place, tokens in enumerate(prompts)
            if len(tokens) <= self._config.max_prompt_tokens
        }
        sampling = SamplingParams(0.0, 1.0, self._config.max_code_tokens)
        completions = model.sample(list(asked.values()), sampling) if asked else []
        answers = {completion.request_id: completion for completion in completions}
        return [self._read(answers.get(str(place)), model.tokenizer) for place in range(len(questions))]

    def embedded(self, code: str) -> str:
        """Return the whole code, as the paper does."""
        return code

    def close(self) -> None:
        """End the engine."""
        if self._model is not None:
            self._model.close()
        self._model = None

    def _read(self, completion: Completion | None, tokenizer: Any) -> Rewrite:
        if completion is None:
            return Rewrite(None, f"the question is longer than {self._config.max_prompt_tokens} tokens")
        if completion.finish_reason != "stop":
            return Rewrite(None, f"the answer is longer than {self._config.max_code_tokens} tokens")
        return parse_code(decode_response(tokenizer, completion.tokens))

    def _opened(self) -> FrozenModel:
        if self._model is None:
            self._say(f"skills: starting the {self.description}")
            self._model = FrozenModel(_run_of(self._config), self._folder, self._logs, self._say)
        return self._model


def _run_of(config: CoderConfig) -> RunConfig:
    """Return a run's configuration that says how the coder's engine is made; nothing is trained with it."""
    rollout = RolloutConfig(engine=config.engine, local_dtype=config.dtype, sglang=config.sglang)
    run = RunConfig(model=ModelConfig(path=str(config.path), dtype=config.dtype))
    return dataclasses.replace(run, rollout=rollout)
