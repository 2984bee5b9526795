"""Configuration of sampling: which engine, how much, and how."""

from dataclasses import dataclass

from megatron_srpo.config.base import Config, option
from megatron_srpo.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class RolloutConfig(Config):
    """Rollouts of one training step and the engine that samples them."""

    engine: str = option("local", "Engine that samples: local (transformers in process).", choices=("local",))
    prompts_per_step: int = option(32, "Prompts per training step, all ranks together.", minimum=1)
    samples_per_prompt: int = option(8, "Responses per prompt (G).", minimum=1)
    temperature: float = option(1.0, "Sampling temperature; the trainer divides its logits by it too.")
    top_p: float = option(1.0, "Nucleus mass. Log-probs are not renormalised: below 1 they are biased.")
    max_response_tokens: int = option(8192, "Most tokens of a response.", minimum=1)
    local_batch_size: int = option(
        256, "Most responses that the local engine decodes together; bounds its key-value cache.", minimum=1
    )
    local_dtype: str = option(
        "float32", "Type of the local engine's weights and cache.", choices=("float32", "bfloat16")
    )

    def validate(self) -> None:
        """Refuse greedy training rollouts and an empty nucleus."""
        if not 0.0 < self.temperature < float("inf"):
            raise ConfigError(
                f"RolloutConfig.temperature = {self.temperature}; give a finite number above 0 "
                "(greedy rollouts of one prompt are all the same and teach nothing)"
            )
        check_top_p("RolloutConfig", self.top_p)

    @property
    def responses_per_step(self) -> int:
        """Responses sampled per training step."""
        return self.prompts_per_step * self.samples_per_prompt


def check_top_p(owner: str, top_p: float) -> None:
    """Raise ConfigError unless ``top_p`` lies in (0, 1]."""
    if not 0.0 < top_p <= 1.0:
        raise ConfigError(f"{owner}.top_p = {top_p}; give a number above 0 and at most 1")
