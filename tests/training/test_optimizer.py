"""What the optimizer refuses, and that nothing of a model stays when its trainer is gone."""

import gc
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from megatron_srpo import platform
from megatron_srpo.config.training import OptimizerConfig
from megatron_srpo.errors import ConfigError
from megatron_srpo.training import optimizer
from tests.model.tiny import EXPERTS, write_random_qwen3
from tests.ranks import run_ranks
from tests.training.harness import Layout, fixed_rollouts, make_trainer, train_step
from tests.training.test_layouts import ALGORITHMS


def test_a_distributed_optimizer_that_could_not_be_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "has_cuda", lambda: True)
    monkeypatch.setattr(optimizer, "HAVE_APEX_OR_TE", False)
    model = SimpleNamespace()
    with pytest.raises(ConfigError, match=r"Transformer Engine or Apex.*optimizer\.distributed=false"):
        optimizer.PolicyOptimizer(OptimizerConfig(), model, total_steps=1)


def what_stays(rank: int, world: int, folder: str, layout: Layout, dtype: torch.dtype) -> list[str]:
    """Train a step, let go of the trainer, and name what is still there."""
    trainer = make_trainer(folder, layout.initialize(), ALGORITHMS["srpo"], layout=layout, dtype=dtype)
    train_step(trainer, fixed_rollouts())
    parts = {
        "model": trainer.policy,
        "gradients": trainer.policy.buffers[0],
        "optimizer": trainer.optimizer.optimizer,
    }
    known = {name: weakref.ref(part) for name, part in parts.items()}
    del trainer, parts
    gc.collect()
    return [name for name, part in known.items() if part() is not None]


@pytest.mark.parametrize("experts", [{}, EXPERTS], ids=["dense", "experts"])
@pytest.mark.parametrize("distributed", [False, True], ids=["replicated", "distributed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_nothing_stays_of_a_trainer_that_is_gone(
    tmp_path: Path, dtype: torch.dtype, distributed: bool, experts: dict[str, int]
) -> None:
    """Self-play trains one model after another in the same processes."""
    folder = str(write_random_qwen3(tmp_path, **experts, tie_word_embeddings=True))
    layout = Layout(distributed=distributed, overlap=True)
    assert run_ranks(1, what_stays, folder, layout, dtype) == [[]]
