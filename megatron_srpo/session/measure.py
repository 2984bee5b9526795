"""Evaluation of a model without a trainer: block by block, saved as it goes, taken up again after a stop."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from megatron_srpo.config.run import RunConfig
from megatron_srpo.data.chat import decode_response, limit_prompts, render_prompt
from megatron_srpo.data.sources import load_source
from megatron_srpo.data.types import Prompt
from megatron_srpo.errors import DataError
from megatron_srpo.evaluation.evaluate import (
    Place,
    first_of_each_set,
    requests_of,
    sampling_params,
    score_rows,
)
from megatron_srpo.evaluation.rows import SampleRow
from megatron_srpo.model.architecture import Qwen3Architecture
from megatron_srpo.rewards.pool import RewardPool
from megatron_srpo.rollout.engine import Generation, ProgressCallback, RolloutEngine
from megatron_srpo.rollout.sglang.engine import SGLangEngine
from megatron_srpo.rollout.types import Completion, Request, SamplingParams
from megatron_srpo.session.engine import engine_alone
from megatron_srpo.session.saved import SavedResponses

#: Responses that are sampled, scored and saved together; what a kill loses at most, per block in flight.
BLOCK_RESPONSES = 512
#: Blocks asked of servers at once, so that none idles while the longest responses of a block are finished.
BLOCKS_AHEAD = 3


@dataclass(frozen=True)
class Questions:
    """The prompts of an evaluation.

    Attributes:
        blocks: of prompts and their places in their sets; the same for every attempt.
        left_out: how many prompts of each set were longer than ``data.max_prompt_tokens``.
    """

    blocks: tuple[tuple[Place, ...], ...]
    left_out: dict[str, int]

    @property
    def prompts(self) -> list[Prompt]:
        """All of them."""
        return [prompt for block in self.blocks for _, prompt in block]


def load_questions(config: RunConfig, tokenizer: Any) -> Questions:
    """Read the evaluation sets and cut them into blocks.

    Raises:
        DataError: a set cannot be read, or none of its prompts is short enough.
    """
    data = config.data
    limit = (data.thinking, data.max_prompt_tokens, data.overlong_prompts)
    prompts: list[Prompt] = []
    left_out: dict[str, int] = {}
    for source in data.eval:
        try:
            kept, lengths = limit_prompts(load_source(source, data.on_bad_row)[0], tokenizer, *limit)
        except DataError as error:
            raise DataError(f"{source.label}: {error}") from error
        prompts += kept
        left_out[source.label] = lengths.skipped
    chosen = first_of_each_set(prompts, config.evaluation.max_prompts)
    size = max(1, BLOCK_RESPONSES // config.evaluation.samples_per_prompt)
    blocks = [tuple(chosen[start : start + size]) for start in range(0, len(chosen), size)]
    return Questions(tuple(blocks), left_out)


@dataclass(frozen=True)
class Block:
    """A finished block.

    Attributes:
        seconds: of wall clock since the block before it, or since sampling began.
    """

    number: int
    rows: tuple[SampleRow, ...]
    seconds: float


class Later:
    """A :class:`~megatron_srpo.rollout.engine.Generation` of an engine that samples only when waited for."""

    def __init__(self, generate: Callable[[], list[Completion]]) -> None:
        self.result = generate

    def cancel(self) -> None:
        """Nothing has been started."""


def measure(
    config: RunConfig,
    questions: Questions,
    tokenizer: Any,
    saved: SavedResponses,
    say: Callable[[str], None],
    on_block: Callable[[Block], None],
    on_response: ProgressCallback | None = None,
) -> dict[str, Any] | None:
    """Sample, score and save every block that is not saved yet.

    Args:
        say: shows a line about the engine.
        on_block: is given every block when it is saved.
        on_response: called with (finished, all) responses of the block that is waited for.

    Returns:
        What the engine says of itself: the model that external servers hold. None: nothing was missing.

    Raises:
        UserError: the engine fails, or a verifier cannot be loaded; what is saved stays.
    """
    missing = [number for number in range(len(questions.blocks)) if number not in saved.finished]
    if not missing:
        return None
    arch = Qwen3Architecture.from_hf_folder(config.model.path)
    with (
        RewardPool(config.reward) as rewards,
        engine_alone(config, arch.vocab_size, tokenizer, say) as engine,
    ):
        rewards.start()
        for block in _blocks(config, questions, missing, tokenizer, engine, rewards, on_response):
            saved.append(block.number, block.rows, block.seconds)
            on_block(block)
        return _served_model(engine, config)


def _blocks(
    config: RunConfig,
    questions: Questions,
    missing: Sequence[int],
    tokenizer: Any,
    engine: RolloutEngine,
    rewards: RewardPool,
    on_response: ProgressCallback | None,
) -> Iterator[Block]:
    evaluation = config.evaluation
    sampling = sampling_params(evaluation, config.rollout.max_response_tokens)

    def render(prompt: Prompt) -> list[int]:
        return render_prompt(tokenizer, prompt.messages, config.data.thinking)

    def ask(number: int) -> Generation:
        requests = requests_of(questions.blocks[number], evaluation, render, config.seed)
        return _submit(engine, requests, sampling, on_response)

    began = time.perf_counter()
    with _asked_ahead(missing, ask) as answers:
        for number, completions in answers:
            rows = score_rows(
                questions.blocks[number],
                completions,
                evaluation,
                partial(decode_response, tokenizer),
                lambda asked, texts: rewards.score(list(zip(asked, texts, strict=True))),
            )
            now = time.perf_counter()
            yield Block(number, rows, now - began)
            began = now


@contextmanager
def _asked_ahead(
    numbers: Sequence[int], ask: Callable[[int], Generation]
) -> Iterator[Iterator[tuple[int, list[Completion]]]]:
    """Yield the answers to blocks in their order, with some blocks asked for in advance."""
    asked: deque[tuple[int, Generation]] = deque()

    def answers() -> Iterator[tuple[int, list[Completion]]]:
        waiting = deque(numbers)
        while waiting or asked:
            while waiting and len(asked) < BLOCKS_AHEAD:
                number = waiting.popleft()
                asked.append((number, ask(number)))
            number, generation = asked[0]
            completions = generation.result()
            asked.popleft()
            yield number, completions

    try:
        yield answers()
    finally:
        for _, generation in asked:
            generation.cancel()


def _submit(
    engine: RolloutEngine,
    requests: Sequence[Request],
    sampling: SamplingParams,
    on_response: ProgressCallback | None,
) -> Generation:
    if isinstance(engine, SGLangEngine):
        return engine.submit(requests, sampling, on_response)
    return Later(lambda: engine.generate(requests, sampling, on_response))


def _served_model(engine: RolloutEngine, config: RunConfig) -> dict[str, Any]:
    """Name the model that external servers hold: whether it is model.path's is theirs to say."""
    if not isinstance(engine, SGLangEngine) or not config.rollout.sglang.urls:
        return {}
    return {"served": [str(server.info().result().get("model_path")) for server in engine.servers]}
