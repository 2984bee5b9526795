"""Megatron-Core's DDP wrapper, AdamW and learning-rate schedule for the policy."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from megatron_srpo.config.training import OptimizerConfig
from megatron_srpo.model.megatron_core import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    Float16Module,
    GPTModel,
    MegatronOptimizer,
    MegatronOptimizerConfig,
    OptimizerParamScheduler,
    clip_grad_by_total_norm_fp32,
    finalize_model_grads,
    get_megatron_optimizer,
)


def wrap_policy(policy: GPTModel) -> DistributedDataParallel:
    """Wrap the policy for gradient accumulation in fp32 and reduction over data-parallel replicas."""
    config = policy.config
    inner = Float16Module(config, policy) if config.bf16 else policy
    ddp_config = DistributedDataParallelConfig(grad_reduce_in_fp32=True, use_distributed_optimizer=False)
    config.finalize_model_grads_func = _finalize_without_division
    return DistributedDataParallel(config, ddp_config, inner)


def _finalize_without_division(
    model: list[torch.nn.Module], num_tokens: torch.Tensor | None = None, **options: Any
) -> None:
    """Reduce gradients, but leave their scale: the loss is already divided by the step's denominator."""
    finalize_model_grads(model, None, **options)


@dataclass(frozen=True)
class OptimizerStep:
    """What one optimizer step did. ``applied`` is False when the gradient was not finite."""

    grad_norm: float
    learning_rate: float
    applied: bool


class PolicyOptimizer:
    """AdamW with warm-up and schedule, both Megatron-Core's.

    Args:
        total_steps: optimizer steps of the whole run, the length of a decaying schedule.
    """

    def __init__(self, config: OptimizerConfig, model: DistributedDataParallel, total_steps: int) -> None:
        self.model = model
        self.config = config
        self.optimizer: MegatronOptimizer = get_megatron_optimizer(_megatron_config(config, model), [model])
        model.config.grad_scale_func = self.optimizer.scale_loss
        self.scheduler = _scheduler(config, self.optimizer, total_steps)

    def zero_grad(self) -> None:
        """Clear the gradient buffers before the first micro-batch."""
        self.model.zero_grad_buffer()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def step(self) -> OptimizerStep:
        """Clip and apply the gradients; a gradient that is not finite is not applied.

        The schedule moves first, so that step k of a warm-up over w steps uses k / w of the learning rate.
        """
        self.scheduler.step(increment=1)
        overflow = self.optimizer.prepare_grads()
        norm = math.nan if overflow else self._clip()
        applied = math.isfinite(norm)
        if applied:
            self.optimizer.step_with_ready_grads()
        return OptimizerStep(norm, self.learning_rate, applied)

    def _clip(self) -> float:
        """Return the norm over all parameters, and clip by it.

        Experts that are spread over ranks have an optimizer of their own beside the one of the other weights.
        """
        norm = float(self.optimizer.get_grad_norm())
        if self.config.grad_clip > 0 and math.isfinite(norm):
            for optimizer in self.optimizer.chained_optimizers:
                clip_grad_by_total_norm_fp32(optimizer.get_parameters(), self.config.grad_clip, norm)
        return norm

    @property
    def learning_rate(self) -> float:
        """The learning rate in force."""
        return float(self.optimizer.param_groups[0]["lr"])


def _megatron_config(config: OptimizerConfig, model: DistributedDataParallel) -> MegatronOptimizerConfig:
    return MegatronOptimizerConfig(
        optimizer="adam",
        lr=config.learning_rate,
        min_lr=config.min_learning_rate,
        weight_decay=config.weight_decay,
        adam_beta1=config.beta1,
        adam_beta2=config.beta2,
        adam_eps=config.epsilon,
        clip_grad=config.grad_clip,
        bf16=model.config.bf16,
        params_dtype=model.config.params_dtype,
        use_distributed_optimizer=False,
    )


def _scheduler(
    config: OptimizerConfig, optimizer: MegatronOptimizer, total_steps: int
) -> OptimizerParamScheduler:
    # Megatron-Core requires a decay longer than the warm-up, also where nothing decays.
    length = max(total_steps, config.warmup_steps + 1)
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=config.learning_rate,
        min_lr=min(config.min_learning_rate, config.learning_rate),
        lr_warmup_steps=config.warmup_steps,
        lr_decay_steps=length,
        lr_decay_style=config.schedule,
        start_wd=config.weight_decay,
        end_wd=config.weight_decay,
        wd_incr_steps=length,
        wd_incr_style="constant",
    )
