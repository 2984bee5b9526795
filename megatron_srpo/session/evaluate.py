"""Evaluation during training: the run's engine and verifiers, spread over all replicas."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from megatron_srpo.config.run import RunConfig
from megatron_srpo.data.chat import ChatTokenizer, decode_response, render_prompt
from megatron_srpo.data.types import Prompt
from megatron_srpo.evaluation.evaluate import EvaluationResult, evaluate
from megatron_srpo.model.parallel import ProcessGroups
from megatron_srpo.rewards.pool import RewardPool
from megatron_srpo.rewards.types import Score
from megatron_srpo.rollout.types import Completion, Request, SamplingParams
from megatron_srpo.session.sampling import Sampling
from megatron_srpo.training.exchange import gather_over_replicas, on_leader

Item = TypeVar("Item")
Result = TypeVar("Result")


class Evaluator:
    """Samples and scores the evaluation sets; does nothing where there are none."""

    def __init__(
        self,
        config: RunConfig,
        sets: dict[str, list[Prompt]],
        tokenizer: ChatTokenizer,
        rewards: RewardPool,
        groups: ProcessGroups,
        may_write: Callable[[], bool],
    ) -> None:
        """Take the run's parts; ``may_write`` says whether the run folder is still this run's."""
        self.config = config
        self.prompts = [prompt for chosen in sets.values() for prompt in chosen]
        self.tokenizer = tokenizer
        self.rewards = rewards
        self.groups = groups
        self.may_write = may_write

    def is_due(self, step: int, last_step: int) -> bool:
        """Say whether to evaluate after ``step`` steps."""
        return bool(self.prompts) and self.config.evaluation.is_due(step, last_step)

    def evaluate(self, sampling: Sampling, step: int) -> dict[str, float]:
        """Return the metrics of an evaluation, the same on every rank; rank 0 saves all responses."""
        result = evaluate(
            self.prompts,
            self.config.evaluation,
            generate=lambda requests, params: self._generate(sampling, requests, params),
            render=lambda prompt: render_prompt(self.tokenizer, prompt.messages, self.config.data.thinking),
            decode=lambda tokens: decode_response(self.tokenizer, tokens),
            score=self._score,
            max_response_tokens=self.config.rollout.max_response_tokens,
            run_seed=self.config.seed,
            step=step,
        )
        self._save(result)
        return result.metrics

    def _save(self, result: EvaluationResult) -> None:
        if dist.get_rank() == 0 and self.may_write():
            folder = Path(self.config.output_dir) / "evaluations"
            folder.mkdir(parents=True, exist_ok=True)
            result.save(folder)

    def _generate(
        self, sampling: Sampling, requests: Sequence[Request], params: SamplingParams
    ) -> list[Completion]:
        # Whole prompt groups go to one replica, which computes their prompt once.
        return self._shared(
            requests,
            self.config.evaluation.samples_per_prompt,
            lambda mine: sampling.finish(sampling.start(mine, params)),
        )

    def _score(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Score]:
        def score(mine: list[tuple[Prompt, str]]) -> list[Score]:
            return on_leader(lambda: self.rewards.score(mine), self.groups)

        return self._shared(list(zip(prompts, texts, strict=True)), 1, score)

    def _shared(
        self, items: Sequence[Item], block: int, work: Callable[[list[Item]], list[Result]]
    ) -> list[Result]:
        """Deal blocks of items to replicas in turn, let each work on its own, and give all results to all."""
        owner = [index // block % self.groups.dp_size for index in range(len(items))]
        mine = [item for item, rank in zip(items, owner, strict=True) if rank == self.groups.dp_rank]
        parts: list[Any] = [iter(part) for part in gather_over_replicas(work(mine), self.groups)]
        return [next(parts[rank]) for rank in owner]
