"""What is done with layers of either kind, to compare them: on gloo ranks with or without the stand-in for
Transformer Engine, and on a GPU with the real one."""

from pathlib import Path
from typing import Any

import torch

from megatron_srpo.config.algorithm import AlgorithmConfig
from megatron_srpo.model.architecture import Qwen3Architecture
from megatron_srpo.model.build import build_policy
from megatron_srpo.model.forward import full_logits
from megatron_srpo.model.packing import pack_tokens
from megatron_srpo.training.checkpoint import load_checkpoint, save_checkpoint
from megatron_srpo.training.trainer import Trainer
from megatron_srpo.weights.load import load_hf, model_table
from tests.training.harness import (
    VOCAB_MULTIPLE,
    Layout,
    fixed_rollouts,
    full_weights,
    make_trainer,
    replica_rollouts,
    steps_in_layout,
    train_step,
)


def logits(
    rank: int,
    world: int,
    folder: str,
    layout: Layout,
    sequences: list[list[int]],
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Return names and shapes of the parameters, the keys of a checkpoint, and logits [T, vocabulary]."""
    groups, arch = layout.initialize(), Qwen3Architecture.from_hf_folder(folder)
    model = build_policy(arch, groups, dtype, VOCAB_MULTIPLE, layers=layout.layers)
    load_hf(model, arch, folder, groups)
    own = {id(parameter): name for name, parameter in model.named_parameters()}
    pairs = model_table(model, arch, groups)
    sharded = model.sharded_state_dict(metadata={"dp_cp_group": groups.dp_cp})
    found = full_logits(model, groups, pack_tokens(sequences, groups.split), arch.vocab_size)
    return {
        "names": {entry.parameter: own[id(parameter)] for entry, parameter in pairs},
        "keys": {value.key for name, value in sharded.items() if "_extra_state" not in name},
        "logits": found,
    }


def step(
    rank: int,
    world: int,
    folder: str,
    layout: Layout,
    algorithm: AlgorithmConfig,
    options: dict[str, Any],
) -> dict[str, Any]:
    """Train on the fixed batch, and return what must not depend on the layers."""
    return steps_in_layout(rank, world, folder, layout, algorithm, options, steps=2)


def save(
    rank: int, world: int, folder: str, root: str, layout: Layout, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """Train a step and save; return the weights, and what the next step does with them."""
    trainer = _trainer(folder, layout, dtype)
    train_step(trainer, replica_rollouts(fixed_rollouts(), layout, trainer.groups))
    save_checkpoint(Path(root), 1, trainer, {}, keep=1)
    return _next_step(trainer, folder, layout)


def resume(
    rank: int, world: int, folder: str, saved: str, layout: Layout, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """Load what :func:`save` wrote, in another layout or with other layers, and go on."""
    trainer = _trainer(folder, layout, dtype)
    load_checkpoint(Path(saved), trainer)
    return _next_step(trainer, folder, layout)


def _trainer(folder: str, layout: Layout, dtype: torch.dtype) -> Trainer:
    return make_trainer(folder, layout.initialize(), AlgorithmConfig(name="srpo"), layout=layout, dtype=dtype)


def _next_step(trainer: Trainer, folder: str, layout: Layout) -> dict[str, Any]:
    weights = full_weights(trainer, folder)
    result = train_step(trainer, replica_rollouts(fixed_rollouts(seed=4), layout, trainer.groups))
    assert result is not None
    return {"weights": weights, "grad_norm": result.optimizer.grad_norm, "sums": result.sums}
