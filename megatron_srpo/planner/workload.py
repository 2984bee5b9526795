"""What one training step has to do: rollouts, tokens, passes over them."""

import math
from dataclasses import dataclass

from megatron_srpo.config.run import RunConfig
from megatron_srpo.errors import ConfigError

TEACHERS = ("ema", "live", "frozen", "trust_region", "none")


@dataclass(frozen=True)
class Workload:
    """One training step. Lengths are means unless said otherwise, in tokens.

    Attributes:
        prompts: per step, all GPUs together; ``samples`` responses each.
        max_response_tokens: the longest response: what a batch waits for.
        micro_batch_tokens: most tokens packed into one micro-batch (over all context-parallel ranks).
        optimizer_steps: per training step.
        distilled_share: share of rollouts that the teacher re-scores and that are distilled.
        teacher_prompt_tokens: of the prompt that the teacher sees (question and demonstration).
        teacher: where its weights come from (``config/training.py``), or none.
        scored: whether old log-probs are computed by the trainer.
        reference: whether the initial policy scores every rollout as well (KL penalty).
        vocabulary: entries that the divergence compares: full, topk, sampled.
        rollouts: whether there are any; pre-training tables have none.
        staleness: steps by which rollouts may lag; 0: strictly on-policy.
    """

    prompts: int = 32
    samples: int = 8
    prompt_tokens: int = 512
    response_tokens: int = 4096
    max_response_tokens: int = 8192
    micro_batch_tokens: int = 18432
    optimizer_steps: int = 1
    distilled_share: float = 0.4
    teacher_prompt_tokens: int = 4608
    teacher: str = "ema"
    scored: bool = True
    reference: bool = False
    vocabulary: str = "topk"
    rollouts: bool = True
    staleness: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.response_tokens <= self.max_response_tokens:
            raise ConfigError(
                f"a mean response of {self.response_tokens} tokens does not fit a longest one of "
                f"{self.max_response_tokens}; give --response-tokens between 1 and {self.max_response_tokens}"
            )
        if not 0.0 <= self.distilled_share <= 1.0:
            raise ConfigError(f"a distilled share of {self.distilled_share} is not between 0 and 1")
        if self.micro_batch_tokens < self.prompt_tokens + self.max_response_tokens:
            raise ConfigError(
                f"micro-batches of {self.micro_batch_tokens} tokens cannot hold a prompt of "
                f"{self.prompt_tokens} and a response of {self.max_response_tokens}; "
                "raise --micro-batch-tokens"
            )

    @property
    def sequences(self) -> int:
        """Rollouts per step."""
        return self.prompts * self.samples

    @property
    def sequence_tokens(self) -> int:
        """Mean tokens of prompt and response."""
        return self.prompt_tokens + self.response_tokens

    @property
    def tokens(self) -> int:
        """Tokens of all prompts and responses of a step: what tokens/s counts."""
        return self.sequences * self.sequence_tokens

    @property
    def distills(self) -> bool:
        """Whether any rollout is compared with a teacher."""
        return self.teacher != "none" and self.distilled_share > 0

    @property
    def tail_exponent(self) -> float:
        """Shape a of the lengths: the u-th part of responses is shorter than u^a of the longest.

        The one power law with this mean and maximum; 0 where all are equally long.
        """
        return self.max_response_tokens / self.response_tokens - 1.0

    def still_running(self, length: float) -> float:
        """Return the share of responses longer than ``length`` tokens."""
        share = length / self.max_response_tokens
        if share >= 1.0:
            return 0.0
        return 1.0 if self.tail_exponent == 0 else 1.0 - share ** (1.0 / self.tail_exponent)

    @property
    def attended_tokens(self) -> float:
        """Mean over tokens of the length of their sequence, E[L^2] / E[L]; attention reads half of it."""
        prompt, mean, longest = self.prompt_tokens, self.response_tokens, self.max_response_tokens
        squared = prompt**2 + 2 * prompt * mean + longest**2 / (1 + 2 * self.tail_exponent)
        return squared / (prompt + mean)

    @property
    def response_share(self) -> float:
        """Share of response tokens among all."""
        return self.response_tokens / self.sequence_tokens

    def micro_batches(self, sequences: float, tokens_each: float, fill: float) -> int:
        """Return how many micro-batches hold so many sequences when each is filled to ``fill``."""
        fitting = min(fill, 1.0) * self.micro_batch_tokens
        return max(1, math.ceil(sequences * tokens_each / fitting - 1e-9))


def workload_of(config: RunConfig, response_tokens: int | None, prompt_tokens: int | None) -> Workload:
    """Return the workload of a run's configuration; mean lengths are half of their limits unless given."""
    rollout, prompt_limit = config.rollout, config.data.max_prompt_tokens
    response = response_tokens or max(1, rollout.max_response_tokens // 2)
    prompt = prompt_tokens or max(1, prompt_limit // 2)
    distils = config.algorithm.name != "grpo"
    per_update = config.training.prompts_per_mini_batch or rollout.prompts_per_step
    return Workload(
        prompts=rollout.prompts_per_step,
        samples=rollout.samples_per_prompt,
        prompt_tokens=prompt,
        response_tokens=response,
        max_response_tokens=rollout.max_response_tokens,
        micro_batch_tokens=config.training.micro_batch_tokens,
        optimizer_steps=rollout.prompts_per_step // per_update,
        distilled_share=0.4 if distils else 0.0,
        teacher_prompt_tokens=min(prompt + response, config.data.teacher.max_prompt_tokens),
        teacher=config.teacher.mode if distils else "none",
        reference=config.algorithm.policy.kl_coefficient > 0,
        vocabulary=config.algorithm.distillation.vocabulary,
        staleness=rollout.max_staleness,
    )
