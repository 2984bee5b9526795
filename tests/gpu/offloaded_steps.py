"""Three bf16 training steps with everything in host memory that can be, or nothing; prints JSON.

python -m tests.gpu.offloaded_steps MODEL_FOLDER CHECKPOINTS {0,1} [--resume]

Saves after the first step; with --resume, goes on from what the other kind of run saved.
"""

import argparse
import hashlib
import json
from pathlib import Path

import torch

from megatron_srpo import platform
from megatron_srpo.config.algorithm import AlgorithmConfig
from megatron_srpo.config.training import OptimizerConfig, TeacherConfig
from megatron_srpo.model.megatron_core import HAVE_APEX_OR_TE
from megatron_srpo.training.checkpoint import checkpoint_folder, load_checkpoint, save_checkpoint
from megatron_srpo.training.trainer import Trainer
from tests.training.harness import Layout, fixed_rollouts, full_weights, make_trainer, train_step


def main() -> None:
    """Train on one rank; tell what was on the device when the trainer stood still."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("checkpoints", type=Path)
    parser.add_argument("offload", type=int)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    offload = bool(options.offload)
    torch.use_deterministic_algorithms(True, warn_only=True)
    platform.init_distributed(timeout_s=120)
    # Without Transformer Engine or Apex there is no distributed optimizer on a GPU.
    layout = Layout(distributed=HAVE_APEX_OR_TE)
    trainer = make_trainer(
        options.folder,
        layout.initialize(),
        AlgorithmConfig(name="srpo"),
        TeacherConfig(ema_rate=0.3, offload=offload),
        OptimizerConfig(learning_rate=1e-3, warmup_steps=2, grad_clip=0.05, offload=offload),
        dtype=torch.bfloat16,
        layout=layout,
    )
    norms = []
    for step in range(3):
        if options.resume and step == 0:
            load_checkpoint(checkpoint_folder(options.checkpoints / str(not offload), 1), trainer)
            continue
        result = train_step(trainer, fixed_rollouts(seed=3 + step))
        assert result is not None
        norms.append(result.optimizer.grad_norm)
        if step == 0:
            save_checkpoint(options.checkpoints / str(offload), 1, trainer, {}, keep=1)
    print(json.dumps({"norms": norms, **_digests(trainer, options.folder), **_places(trainer)}))


def _digests(trainer: Trainer, folder: str) -> dict[str, str]:
    digest = hashlib.sha256()
    for _, tensor in sorted(full_weights(trainer, folder).items()):
        digest.update(tensor.float().cpu().numpy().tobytes())
    teacher = hashlib.sha256()
    assert trainer.teacher.copy is not None
    for tensor in trainer.teacher.copy.parameters():
        teacher.update(tensor.detach().float().cpu().numpy().tobytes())
    return {"weights": digest.hexdigest(), "teacher": teacher.hexdigest()}


def _places(trainer: Trainer) -> dict[str, object]:
    """Say on which devices the state lies, whether host memory is page-locked, and how much is allocated."""
    (part,) = trainer.optimizer.optimizer.chained_optimizers
    state = [one for group in part.optimizer.param_groups for one in group["params"]]
    state += [
        value
        for one in list(state)
        for value in part.optimizer.state[one].values()
        if isinstance(value, torch.Tensor) and value.shape == one.shape
    ]
    assert trainer.teacher.average is not None
    state += trainer.teacher.average.held
    platform.synchronize()
    return {
        "devices": sorted({tensor.device.type for tensor in state}),
        "pinned": all(tensor.is_pinned() for tensor in state if tensor.device.type == "cpu"),
        "state": sum(tensor.nbytes for tensor in state),
        "allocated": torch.cuda.memory_allocated(),
    }


if __name__ == "__main__":
    main()
