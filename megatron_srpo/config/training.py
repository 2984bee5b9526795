"""The optimizer, the batch arithmetic, the self-teacher and the checkpoints."""

from dataclasses import dataclass

from megatron_srpo.config.base import Config, option
from megatron_srpo.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Config):
    """AdamW and its learning-rate schedule."""

    learning_rate: float = option(5e-6, "Peak learning rate.", minimum=0)
    min_learning_rate: float = option(0.0, "Learning rate at the end of a decaying schedule.", minimum=0)
    schedule: str = option(
        "constant", "Course of the learning rate after warm-up.", choices=("constant", "linear", "cosine")
    )
    warmup_steps: int = option(10, "Optimizer steps of linear warm-up.", minimum=0)
    weight_decay: float = option(0.01, "Decoupled weight decay (not on norms).", minimum=0)
    beta1: float = option(0.9, "Adam's first-moment decay.", minimum=0, maximum=1)
    beta2: float = option(0.999, "Adam's second-moment decay.", minimum=0, maximum=1)
    epsilon: float = option(1e-8, "Adam's epsilon.", minimum=0)
    grad_clip: float = option(1.0, "Clip the global gradient norm here; 0: off.", minimum=0)
    distributed: bool = option(
        True, "Share the optimizer's state between data-parallel replicas instead of repeating it in each."
    )
    overlap: bool = option(
        True,
        "Sum gradients over data-parallel replicas while the backward pass goes on, not after it.",
    )
    offload: bool = option(
        False,
        "Keep Adam's state and the fp32 weights in host memory; they come to the device for the optimizer's "
        "step, a few parameters at a time.",
    )


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Config):
    """Steps and batches. A step is one rollout batch; it makes one or more optimizer steps."""

    steps: int = option(100, "Training steps (rollout batches).", minimum=0)
    budget_hours: float | None = option(
        None,
        "End before all steps are done, once training has taken so many hours; evaluation, saving and what "
        "comes before the first step do not count. null: no budget.",
    )
    prompts_per_mini_batch: int | None = option(
        None, "Prompts per optimizer step; null: the whole rollout batch.", minimum=1
    )
    micro_batch_tokens: int = option(
        18432,
        "Most tokens packed into one micro-batch (prompt and response), over all context-parallel ranks.",
        minimum=1,
    )
    recompute: str = option(
        "none",
        "What is computed again in the backward pass to save memory. selective: the attention itself; full: "
        "every layer.",
        choices=("none", "selective", "full"),
    )
    balance: bool = option(
        True,
        "Deal every optimizer step's rollouts out to data-parallel replicas so that all have the same work; "
        "otherwise each computes those that it sampled.",
    )
    expert_balance: float = option(
        0.0,
        "Weight of the loss that spreads tokens evenly over experts (Switch Transformer, equation 4) within "
        "each micro-batch. 0: off; the router then follows the reward alone.",
        minimum=0,
    )
    initial_checkpoint: str | None = option(
        None,
        "Training checkpoint (step_...) of the model in model.path whose weights to begin with, at the full "
        "precision that its optimizer kept; moments and schedule begin anew.",
    )
    distributed_timeout_s: float = option(
        600.0, "Seconds after which a collective operation that makes no progress fails.", minimum=1
    )

    def validate(self) -> None:
        """Check what has no simple bound."""
        if self.budget_hours is not None and not 0 < self.budget_hours < float("inf"):
            raise ConfigError(
                f"training.budget_hours = {self.budget_hours}; give a positive number of hours, or null"
            )


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(Config):
    """Where the self-teacher's weights come from (docs/algorithms.md, section 7)."""

    mode: str = option(
        "ema",
        "ema: moving average of the policy; live: the policy itself; frozen: its initial weights; "
        "trust_region: logits between the initial weights' and the policy's.",
        choices=("ema", "live", "frozen", "trust_region"),
    )
    ema_rate: float = option(
        0.05, "ema: share of the policy taken up after each rollout batch.", minimum=0, maximum=1
    )
    trust_region_rate: float = option(
        0.05, "trust_region: share of the policy's logits.", minimum=0, maximum=1
    )
    offload: bool = option(
        False, "Keep the teacher's weights in host memory; they come to the device for its pass."
    )


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Config):
    """When the run's state is saved."""

    every: int = option(20, "Save after every N steps; 0: only at the end.", minimum=0)
    keep: int = option(2, "How many of the newest checkpoints stay on disk.", minimum=1)
    at_end: bool = option(True, "Save after the last step.")
    export_hf: bool = option(True, "Also write the final policy as a Hugging Face folder.")


def mini_batch_prompts(training: TrainingConfig, prompts_per_step: int, data_parallel: int) -> int:
    """Return the prompts per optimizer step, refusing batch arithmetic that does not come out even."""
    prompts = training.prompts_per_mini_batch or prompts_per_step
    if prompts_per_step % prompts:
        raise ConfigError(
            f"rollout.prompts_per_step = {prompts_per_step} is not a multiple of "
            f"training.prompts_per_mini_batch = {prompts}"
        )
    if prompts % data_parallel:
        raise ConfigError(
            f"{prompts} prompts per optimizer step cannot be shared evenly by {data_parallel} data-parallel "
            "replicas; change training.prompts_per_mini_batch, rollout.prompts_per_step or the ranks"
        )
    return prompts
