"""The work that both sides of the TRL comparison do, read from one run configuration."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import AutoTokenizer

from megatron_srpo.config.loader import load_config
from megatron_srpo.config.run import RunConfig
from megatron_srpo.data.chat import limit_prompts
from megatron_srpo.data.sampler import PromptSampler
from megatron_srpo.data.sources import load_prompts, mixture_weights
from megatron_srpo.data.types import Prompt
from tools.benchmarks.lane import BenchmarkError

# Set on both sides: no evaluation, no saving, and a learning rate so small that both keep sampling from
# (nearly) the initial policy, whose response lengths are then the same.
COMMON_OVERRIDES = (
    "data.eval=[]",
    "evaluation.every=0",
    "evaluation.before=false",
    "evaluation.after=false",
    "checkpoint.every=0",
    "checkpoint.at_end=false",
    "checkpoint.export_hf=false",
    "optimizer.learning_rate=1e-6",
    "optimizer.schedule=constant",
    "optimizer.warmup_steps=0",
)


@dataclass(frozen=True)
class Workload:
    """A configuration and the prompts of every step, in order."""

    config: RunConfig
    batches: tuple[tuple[Prompt, ...], ...]

    @property
    def responses_per_step(self) -> int:
        """Responses sampled per step, all ranks together."""
        return self.config.rollout.responses_per_step


def benchmark_config(path: str, overrides: Sequence[str]) -> RunConfig:
    """Read a run configuration for the benchmark.

    Raises:
        ConfigError: a file, key or value that cannot be used.
        BenchmarkError: settings that TRL has no counterpart for.
    """
    config = load_config(RunConfig, path, [*COMMON_OVERRIDES, *overrides])
    if config.training.prompts_per_mini_batch not in (None, config.rollout.prompts_per_step):
        raise BenchmarkError(
            f"training.prompts_per_mini_batch = {config.training.prompts_per_mini_batch}: the comparison "
            "makes one optimizer step per rollout batch; leave it out"
        )
    if config.algorithm.policy.dual_clip is not None or config.algorithm.policy.kl_coefficient:
        raise BenchmarkError(
            "algorithm.policy.dual_clip and kl_coefficient are compared switched off; leave them out"
        )
    return config


def make_workload(config: RunConfig, steps: int) -> Workload:
    """Return the prompts of the first ``steps`` steps, as the training loop takes them."""
    tokenizer = AutoTokenizer.from_pretrained(config.model.path)
    data = config.data
    limit = (data.thinking, data.max_prompt_tokens, data.overlong_prompts)
    train, _ = limit_prompts(load_prompts(data).train, tokenizer, *limit)
    sampler = PromptSampler(train, data.seed, data.shuffle, mixture_weights(data))
    size = config.rollout.prompts_per_step
    return Workload(config, tuple(tuple(sampler.batch(step, size)) for step in range(steps)))


def check_same_work(records: dict[str, list[dict]]) -> None:
    """Refuse a comparison whose lanes did not get the same prompts, in the same order, equally often.

    Args:
        records: steps by lane.

    Raises:
        BenchmarkError: names the step and both lanes.
    """
    (first, reference), *others = records.items()
    for name, steps in others:
        if len(steps) != len(reference):
            raise BenchmarkError(f"{first} made {len(reference)} steps, {name} made {len(steps)}")
        for number, (left, right) in enumerate(zip(reference, steps, strict=True), start=1):
            for key in ("prompts", "prompt_count", "responses"):
                if left[key] != right[key]:
                    raise BenchmarkError(
                        f"step {number}: {key} is {left[key]} for {first} but {right[key]} for {name}; "
                        "the sides did not do the same work"
                    )
