"""Megatron-Core's DDP wrapper, AdamW and learning-rate schedule for the policy."""

import math
import weakref
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from megatron_srpo import platform
from megatron_srpo.config.training import OptimizerConfig
from megatron_srpo.errors import ConfigError
from megatron_srpo.model.chunks import chunks_of, config_of, join_chunks, policies
from megatron_srpo.model.megatron_core import (
    HAVE_APEX_OR_TE,
    DistributedDataParallel,
    DistributedDataParallelConfig,
    MegatronOptimizer,
    MegatronOptimizerConfig,
    OptimizerParamScheduler,
    TransformerConfig,
    clip_grad_by_total_norm_fp32,
    finalize_model_grads,
    get_megatron_optimizer,
)
from megatron_srpo.training.host_adam import HostAdam


def wrap_policy(policy: torch.nn.Module, optimizer: OptimizerConfig) -> torch.nn.Module:
    """Wrap the policy, or every chunk of it, to sum up gradients in fp32 and over data-parallel replicas.

    A bf16 policy was built in bf16, so Megatron-Core's ``Float16Module`` is left out: what it would add is a
    cast of the hidden states to fp32, and with it a head in fp32 that teacher and reference do not have.
    """
    config = config_of(policy)
    # Weights are not gathered during the next forward pass (overlap_param_gather): the teacher and the
    # weight synchronisation read them before there is one.
    ddp_config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=optimizer.distributed,
        overlap_grad_reduce=optimizer.overlap,
        fp8_param_gather=config.fp8_param,
    )
    config.finalize_model_grads_func = _finalize_without_division
    wrapped = [
        # Sums of gradients of later chunks go on during the backward pass of earlier ones anyway.
        DistributedDataParallel(config, ddp_config, chunk, disable_bucketing=number > 0)
        for number, chunk in enumerate(policies(policy))
    ]
    if optimizer.overlap:
        syncs = [chunk.no_sync for chunk in wrapped]
        config.no_sync_func = syncs if len(syncs) > 1 else syncs[0]
    return join_chunks(wrapped)


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

    Raises:
        ConfigError: a distributed optimizer on a GPU without the Adam that it needs.
    """

    def __init__(self, config: OptimizerConfig, model: torch.nn.Module, total_steps: int) -> None:
        _check(config)
        self.config = config
        self.chunks: list[Any] = chunks_of(model)
        shared = config_of(model)
        self.optimizer: MegatronOptimizer = get_megatron_optimizer(
            _megatron_config(config, shared), self.chunks
        )
        parts = self.optimizer.chained_optimizers if config.offload else []
        self._on_host = [HostAdam(part, model) for part in parts]
        # The model must not hold its optimizer: a distributed one's fp32 shards hold the model through their
        # autograd graph, where Python's garbage collector does not look, and both would stay for good.
        optimizer = weakref.proxy(self.optimizer)
        shared.grad_scale_func = lambda loss: optimizer.scale_loss(loss)
        self.scheduler = _scheduler(config, self.optimizer, total_steps)

    def zero_grad(self) -> None:
        """Clear the gradient buffers before the first micro-batch."""
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def step(self) -> OptimizerStep:
        """Clip and apply the gradients; a gradient that is not finite is not applied.

        The schedule moves first, so that step k of a warm-up over w steps uses k / w of the learning rate.
        """
        self.scheduler.step(increment=1)
        with ExitStack() as stack:
            for part in self._on_host:
                stack.enter_context(part.in_step())
            overflow = self.optimizer.prepare_grads()
            norm = math.nan if overflow else self._clip()
            applied = math.isfinite(norm)
            if applied:
                self._apply()
        return OptimizerStep(norm, self.learning_rate, applied)

    def _apply(self) -> None:
        with ExitStack() as stack:
            for part in self._on_host:
                part.step()
                stack.enter_context(part.stepped())
            self.optimizer.step_with_ready_grads()

    def _clip(self) -> float:
        """Return the norm over all parameters, and clip by it.

        Experts that are spread over ranks have an optimizer of their own beside the one of the other weights.
        """
        norm = float(self.optimizer.get_grad_norm())
        if self.config.grad_clip > 0 and math.isfinite(norm):
            for optimizer in self.optimizer.chained_optimizers:
                clip_grad_by_total_norm_fp32(optimizer.get_parameters(), self.config.grad_clip, norm)
        return norm

    def make_state(self) -> None:
        """Allocate Adam's moments, as zeros, where no step has done so yet: a checkpoint describes them."""
        for part in getattr(self.optimizer, "chained_optimizers", [self.optimizer]):
            part.init_state_fn(part.optimizer, part.config)
            for state in part.optimizer.state.values():
                if isinstance(part.optimizer, torch.optim.Adam | torch.optim.AdamW):
                    state.setdefault("step", torch.zeros((), dtype=torch.float32))
        self.leave_device()

    @torch.no_grad()
    def forget(self) -> None:
        """Set Adam's moments and counts of steps back to zero; the weights stay."""
        for part in getattr(self.optimizer, "chained_optimizers", [self.optimizer]):
            for state in part.optimizer.state.values():
                for name in ("exp_avg", "exp_avg_sq", "step"):
                    if name in state:
                        state[name].zero_()
            for group in part.optimizer.param_groups:
                if "step" in group:  # where Transformer Engine's Adam counts
                    group["step"] = 0

    def leave_device(self) -> None:
        """Move to host memory what was made or loaded elsewhere, where the state lives there."""
        for part in self._on_host:
            part.leave()

    @property
    def learning_rate(self) -> float:
        """The learning rate in force."""
        return float(self.optimizer.param_groups[0]["lr"])


def _check(config: OptimizerConfig) -> None:
    if config.distributed and platform.has_cuda() and not HAVE_APEX_OR_TE:
        # Megatron-Core cannot load the checkpoints that it would write (its loader wants their Adam).
        raise ConfigError(
            "optimizer.distributed = true needs the Adam of Transformer Engine or Apex, and neither is "
            "installed; install one, or set optimizer.distributed=false"
        )


def _megatron_config(config: OptimizerConfig, model: TransformerConfig) -> MegatronOptimizerConfig:
    return MegatronOptimizerConfig(
        optimizer="adam",
        lr=config.learning_rate,
        min_lr=config.min_learning_rate,
        weight_decay=config.weight_decay,
        adam_beta1=config.beta1,
        adam_beta2=config.beta2,
        adam_eps=config.epsilon,
        clip_grad=config.grad_clip,
        bf16=model.bf16,
        params_dtype=model.params_dtype,
        use_distributed_optimizer=config.distributed,
        fp8_recipe=model.fp8_recipe if model.fp8 else None,
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
