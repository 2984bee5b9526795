"""The models of a run on this rank, the trainer that holds them, and what shares its work out."""

import torch

from megatron_srpo.config.run import RunConfig
from megatron_srpo.config.training import mini_batch_prompts
from megatron_srpo.model.architecture import Qwen3Architecture
from megatron_srpo.model.build import build_policy
from megatron_srpo.model.parallel import ProcessGroups
from megatron_srpo.model.precision import Layers
from megatron_srpo.ops import VocabShard
from megatron_srpo.training.heads import HeadForm
from megatron_srpo.training.optimizer import PolicyOptimizer, wrap_policy
from megatron_srpo.training.placement import WorkCosts
from megatron_srpo.training.shared_work import WorkDealer
from megatron_srpo.training.teacher import Teacher
from megatron_srpo.training.trainer import Trainer
from megatron_srpo.weights.load import load_hf

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def build_trainer(
    config: RunConfig, arch: Qwen3Architecture, groups: ProcessGroups, layers: Layers
) -> Trainer:
    """Load the policy, the teacher and, where a KL penalty is on, the reference; wrap the policy to train.

    Args:
        layers: what the policy's layers are made of.

    Raises:
        ConfigError: the layout cannot split the model.
        WeightError: the model folder's tensors cannot be used.
    """
    wrapped = wrap_policy(_initial(config, arch, groups, layers), config.optimizer)
    passes = config.model.fp8_passes
    still = layers.untrained(fp8=passes == "all")
    copy = None if not uses_teacher_copy(config) else _initial(config, arch, groups, still).eval()
    penalised = config.algorithm.policy.kl_coefficient > 0
    return Trainer(
        policy=wrapped,
        optimizer=PolicyOptimizer(config.optimizer, wrapped, optimizer_steps(config)),
        teacher=Teacher(config.teacher, wrapped, copy, groups, bf16=passes != "all"),
        reference=_initial(config, arch, groups, still).eval() if penalised else None,
        groups=groups,
        form=_head_form(config, arch, groups),
        config=config.algorithm,
        capacity=config.training.micro_batch_tokens,
        expert_balance=config.training.expert_balance,
        bf16_scores=passes == "training",
    )


def build_dealer(config: RunConfig, arch: Qwen3Architecture, groups: ProcessGroups) -> WorkDealer:
    """Return what shares the passes over a step's rollouts out to the replicas."""
    penalised = config.algorithm.policy.kl_coefficient > 0
    costs = WorkCosts.of(arch, config.training.recompute, reference=penalised)
    return WorkDealer(costs, groups, config.training.balance)


def _head_form(config: RunConfig, arch: Qwen3Architecture, groups: ProcessGroups) -> HeadForm:
    padded = arch.padded_vocab_size(groups.tp_size, config.model.vocab_multiple)
    shard = VocabShard(groups.tp, arch.vocab_size, padded)
    return HeadForm(shard, config.rollout.temperature, config.model.fp32_head)


def uses_teacher_copy(config: RunConfig) -> bool:
    """Say whether the teacher needs weights of its own."""
    return config.algorithm.name != "grpo" and config.teacher.mode != "live"


def optimizer_steps(config: RunConfig) -> int:
    """Return the optimizer steps of the whole run."""
    prompts = config.rollout.prompts_per_step
    return config.training.steps * (prompts // mini_batch_prompts(config.training, prompts, 1))


def _initial(
    config: RunConfig, arch: Qwen3Architecture, groups: ProcessGroups, layers: Layers
) -> torch.nn.Module:
    dtype, multiple = DTYPES[config.model.dtype], config.model.vocab_multiple
    model = build_policy(arch, groups, dtype, multiple, config.training.recompute, layers)
    load_hf(model, arch, config.model.path, groups)
    return model
