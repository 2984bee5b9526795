"""Configuration of evaluation on held-out prompts."""

from dataclasses import dataclass

from megatron_srpo.config.base import Config, option
from megatron_srpo.config.rollout import check_top_p
from megatron_srpo.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Config):
    """When to evaluate, how to sample and what counts as right. Defaults: the SRPO paper's (16 samples)."""

    every: int = option(5, "Evaluate after every so many steps; 0: only before and after.", minimum=0)
    before: bool = option(True, "Evaluate before the first step (reported as step 0).")
    after: bool = option(True, "Evaluate after the last step.")
    samples_per_prompt: int = option(16, "Responses per prompt: the k of avg@k and maj@k.", minimum=1)
    pass_k: int | None = option(None, "The k of pass@k; default: samples_per_prompt.", minimum=1)
    temperature: float = option(0.6, "Sampling temperature; 0 is greedy.", minimum=0.0)
    top_p: float = option(0.95, "Nucleus mass.")
    max_response_tokens: int | None = option(
        None, "Most tokens of a response; default: as in rollouts.", minimum=1
    )
    max_prompts: int | None = option(
        None, "Prompts used of every set, the first ones; default: all.", minimum=1
    )
    success_threshold: float = option(0.5, "Least score that counts as right.")

    def validate(self) -> None:
        """Check sampling values and that pass@k has enough samples."""
        if self.temperature == float("inf"):
            raise ConfigError("EvaluationConfig.temperature = inf; give a finite number")
        check_top_p("EvaluationConfig", self.top_p)
        if self.pass_k is not None and self.pass_k > self.samples_per_prompt:
            raise ConfigError(
                f"EvaluationConfig.pass_k = {self.pass_k} needs at least as many samples, but "
                f"samples_per_prompt = {self.samples_per_prompt}; raise the latter or lower pass_k"
            )

    def is_due(self, step: int, last_step: int) -> bool:
        """Say whether to evaluate once ``step`` steps are done (0: before training)."""
        if step == 0:
            return self.before
        if step == last_step and self.after:
            return True
        return self.every > 0 and step % self.every == 0
