"""What the tests run on ranks where ``import transformer_engine`` finds the stand-in."""

from pathlib import Path
from typing import Any

import torch

from megatron_srpo.config.algorithm import AlgorithmConfig
from megatron_srpo.model.architecture import Qwen3Architecture
from megatron_srpo.model.build import build_policy
from megatron_srpo.model.forward import full_logits
from megatron_srpo.model.packing import pack_tokens
from megatron_srpo.training.checkpoint import load_checkpoint, save_checkpoint
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


def logits(rank: int, world: int, folder: str, layout: Layout, sequences: list[list[int]]) -> dict[str, Any]:
    """Return names and shapes of the parameters, the keys of a checkpoint, and logits [T, vocabulary]."""
    groups, arch = layout.initialize(), Qwen3Architecture.from_hf_folder(folder)
    model = build_policy(arch, groups, torch.float32, VOCAB_MULTIPLE, layers=layout.layers)
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


def passes(
    rank: int, world: int, folder: str, layout: Layout, algorithm: AlgorithmConfig, dtype: Any
) -> dict[str, Any]:
    """Train one step in FP8; return which recipes the products of every pass used, and its gradient norm."""
    from transformer_engine.pytorch.fp8 import FP8GlobalStateManager

    groups = layout.initialize()
    trainer = make_trainer(folder, groups, algorithm, layout=layout, dtype=dtype, capacity=layout.capacity)
    used: dict[str, set[str]] = {}
    for name in ("score", "score_reference", "teach", "update"):
        setattr(trainer, name, _recorded(name, getattr(trainer, name), used, FP8GlobalStateManager.passes))
    result = train_step(trainer, replica_rollouts(fixed_rollouts(), layout, groups))
    assert result is not None
    return {
        "used": used,
        "grad_norm": result.optimizer.grad_norm,
        "padding": result.computed - result.tokens,
        "loss": result.sums["policy_loss"],
    }


def _recorded(name: str, call: Any, used: dict[str, set[str]], products: list[str]) -> Any:
    def wrapped(*arguments: Any) -> Any:
        products.clear()
        result = call(*arguments)
        used[name] = set(products)
        return result

    return wrapped


def save(rank: int, world: int, folder: str, root: str, layout: Layout) -> dict[str, Any]:
    """Train a step and save; return the weights and the gradient norm of the next step."""
    trainer, groups = _trainer(folder, layout)
    train_step(trainer, replica_rollouts(fixed_rollouts(), layout, groups))
    save_checkpoint(Path(root), 1, trainer, {}, keep=1)
    return _next_step(trainer, folder, layout)


def resume(rank: int, world: int, folder: str, saved: str, layout: Layout) -> dict[str, Any]:
    """Load what :func:`save` wrote, in another layout or with other layers, and go on."""
    trainer, _ = _trainer(folder, layout)
    load_checkpoint(Path(saved), trainer)
    return _next_step(trainer, folder, layout)


def _trainer(folder: str, layout: Layout) -> Any:
    groups = layout.initialize()
    return make_trainer(folder, groups, AlgorithmConfig(name="srpo"), layout=layout), groups


def _next_step(trainer: Any, folder: str, layout: Layout) -> dict[str, Any]:
    weights = full_weights(trainer, folder)
    result = train_step(trainer, replica_rollouts(fixed_rollouts(seed=4), layout, trainer.groups))
    assert result is not None
    return {"weights": weights, "grad_norm": result.optimizer.grad_norm, "sums": result.sums}
