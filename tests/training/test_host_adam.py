"""An optimizer whose state lives in host memory trains the same, and its checkpoints are anybody's."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from megatron_srpo.config.algorithm import AlgorithmConfig
from megatron_srpo.config.training import OptimizerConfig
from megatron_srpo.training import host_adam
from megatron_srpo.training.checkpoint import checkpoint_folder, load_checkpoint, save_checkpoint
from megatron_srpo.training.trainer import Trainer
from tests.model.tiny import EXPERTS, write_random_qwen3
from tests.ranks import run_ranks
from tests.training.harness import (
    Layout,
    fixed_rollouts,
    full_weights,
    make_trainer,
    replica_rollouts,
    train_step,
)

SRPO = AlgorithmConfig(name="srpo")
#: Every step has a learning rate of its own, and is clipped.
OPTIMIZER = OptimizerConfig(
    learning_rate=1e-3, warmup_steps=2, schedule="linear", grad_clip=0.05, weight_decay=0.1
)
#: Bytes that hold a few of the small model's parameters: every step takes several visits.
FEW = 60_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_random_qwen3(tmp_path_factory.mktemp("model"), tie_word_embeddings=True))


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_random_qwen3(tmp_path_factory.mktemp("mixture"), **EXPERTS))


def three_steps(
    rank: int,
    world: int,
    folder: str,
    layout: Layout,
    dtype: torch.dtype,
    offload: bool,
    root: Path,
    on: bool,
) -> dict[str, Any]:
    """Train three steps and save after the first, or go ``on`` from where the other kind of run saved."""
    with patch.object(host_adam, "VISITING_BYTES", FEW):
        return _three_steps(folder, layout, dtype, offload, root, on)


def _three_steps(
    folder: str, layout: Layout, dtype: torch.dtype, offload: bool, root: Path, on: bool
) -> dict[str, Any]:
    groups = layout.initialize()
    trainer = _trainer(folder, layout, dtype, offload, groups)
    steps = []
    for seed in (3, 4, 5):
        if on and seed == 3:
            load_checkpoint(checkpoint_folder(root / str(not offload), 1), trainer)
            continue
        result = train_step(trainer, replica_rollouts(fixed_rollouts(seed=seed), layout, groups))
        assert result is not None and result.optimizer.applied
        steps.append((result.sums, result.optimizer.grad_norm, result.optimizer.learning_rate))
        if seed == 3:
            save_checkpoint(root / str(offload), 1, trainer, {}, keep=1)
    return {"steps": steps, "weights": full_weights(trainer, folder), "state": _state(trainer)}


def _trainer(folder: str, layout: Layout, dtype: torch.dtype, offload: bool, groups: Any) -> Trainer:
    options = {**OPTIMIZER.__dict__, "offload": offload}
    optimizer = OptimizerConfig(**options)
    return make_trainer(folder, groups, SRPO, optimizer=optimizer, dtype=dtype, layout=layout)


def _state(trainer: Trainer) -> list[torch.Tensor]:
    """Everything that Adam keeps, in the order of its parameters."""
    parts = trainer.optimizer.optimizer.chained_optimizers
    parameters = [one for part in parts for group in part.optimizer.param_groups for one in group["params"]]
    states = [
        value
        for part in parts
        for group in part.optimizer.param_groups
        for one in group["params"]
        for _, value in sorted(part.optimizer.state[one].items())
    ]
    return [value.detach().clone() for value in (*parameters, *states)]


@pytest.mark.parametrize(
    ("world", "layout", "dtype", "experts"),
    [
        (1, Layout(), torch.float32, False),
        (2, Layout(tp=2), torch.bfloat16, False),
        (2, Layout(pp=2), torch.bfloat16, False),
        (2, Layout(distributed=True), torch.float32, False),
        (2, Layout(distributed=True, overlap=True), torch.bfloat16, False),
        (2, Layout(ep=2, distributed=True), torch.bfloat16, True),
    ],
    ids=["fp32", "tp2", "pp2", "distributed fp32", "distributed", "experts"],
)
def test_training_is_the_same_bit_for_bit(
    folder: str, mixture: str, tmp_path: Path, world: int, layout: Layout, dtype: torch.dtype, experts: bool
) -> None:
    def run(offload: bool, on: bool) -> list[dict[str, Any]]:
        model = mixture if experts else folder
        return run_ranks(world, three_steps, model, layout, dtype, offload, tmp_path, on)

    device = run(False, False)
    learning_rates = [step[2] for step in device[0]["steps"]]
    assert len(set(learning_rates)) == 3
    assert all(norm > OPTIMIZER.grad_clip for _, norm, _ in device[0]["steps"])
    # From step one on in host memory; then each kind of run goes on where the other one was after a step.
    for offload, on in ((True, False), (True, True), (False, True)):
        for one, other in zip(device, run(offload, on), strict=True):
            assert one["steps"][on:] == other["steps"]
            assert all(torch.equal(other["weights"][name], value) for name, value in one["weights"].items())
            assert len(one["state"]) == len(other["state"])
            assert all(torch.equal(a, b) for a, b in zip(one["state"], other["state"], strict=True))


@pytest.mark.parametrize("distributed", [False, True])
def test_what_lives_on_the_device_between_steps_and_during_one(folder: str, distributed: bool) -> None:
    run_ranks(2, watch_the_state, folder, Layout(distributed=distributed))


def watch_the_state(rank: int, world: int, folder: str, layout: Layout) -> None:
    groups = layout.initialize()
    with patch.object(host_adam, "VISITING_BYTES", FEW):
        trainer = _trainer(folder, layout, torch.bfloat16, True, groups)
        rollouts = replica_rollouts(fixed_rollouts(), layout, groups)
        train_step(trainer, rollouts)
        (part,) = trainer.optimizer.optimizer.chained_optimizers
        adam = part.optimizer
        weights = [one for group in adam.param_groups for one in group["params"]]
        homes = [_tensors(adam, one) for one in weights]
        at_home = {value.data_ptr() for values in homes for value in values}
        visits: list[tuple[int, int]] = []

        def before(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            """Count what is on the device: what is not at home, and more than a stand-in."""
            present = [value for one in weights for value in _tensors(adam, one)]
            away = [value for value in present if value.data_ptr() not in at_home]
            stepped = sum(one.numel() for group in optimizer.param_groups for one in group["params"])
            # Weights that Adam has stepped over already wait in bf16 to be copied into the model.
            full = [v for v in away if v.dtype == torch.float32 and v.untyped_storage().nbytes() > 4]
            visits.append((sum(value.nbytes for value in full), stepped))

        adam.register_step_pre_hook(before)
        train_step(trainer, rollouts)
    own = sum(one.numel() for one in weights)
    assert [size for size, _ in visits] == [12 * stepped for _, stepped in visits]
    assert sum(stepped for _, stepped in visits) == own
    largest = max(12 * one.numel() for one in weights)
    assert len(visits) > 3 and all(size <= max(FEW, largest) for size, _ in visits)
    assert {value.data_ptr() for one in weights for value in _tensors(adam, one)} == at_home


def _tensors(adam: torch.optim.Optimizer, weight: torch.Tensor) -> list[torch.Tensor]:
    return [weight.data, *(adam.state[weight][name] for name in ("exp_avg", "exp_avg_sq"))]


def test_a_gradient_that_is_not_finite_changes_nothing(folder: str) -> None:
    run_ranks(1, overflow, folder)


def overflow(rank: int, world: int, folder: str) -> None:
    layout = Layout(distributed=True)
    groups = layout.initialize()
    trainer = _trainer(folder, layout, torch.bfloat16, True, groups)
    train_step(trainer, fixed_rollouts())
    before, state = full_weights(trainer, folder), _state(trainer)
    trainer.optimizer.zero_grad()
    trainer.policy.buffers[0].grad_data[0] = torch.inf
    assert not trainer.optimizer.step().applied
    assert all(torch.equal(value, before[name]) for name, value in full_weights(trainer, folder).items())
    assert all(torch.equal(a, b) for a, b in zip(state, _state(trainer), strict=True))
