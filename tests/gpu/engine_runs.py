"""Ranks on GPUs with layers of either kind: torchrun -m tests.gpu.engine_runs JOB INPUT OUTPUT

INPUT and OUTPUT are files of ``torch.save``: the arguments of a function below, and what it returned.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_srpo import platform
from megatron_srpo.config.algorithm import AlgorithmConfig
from megatron_srpo.config.training import OptimizerConfig, TeacherConfig
from megatron_srpo.model.architecture import Qwen3Architecture
from megatron_srpo.model.precision import Layers
from megatron_srpo.training.microbatches import TokenSequence
from megatron_srpo.training.trainer import Trainer
from megatron_srpo.weights.export import save_hf
from tests.training import layer_jobs
from tests.training.harness import (
    FixedRollout,
    Layout,
    fixed_rollouts,
    full_weights,
    make_trainer,
    replica_rollouts,
    train_step,
)

GRPO = AlgorithmConfig(name="grpo")
NO_TEACHER = TeacherConfig(mode="live")


def layout_of(values: dict[str, Any]) -> Layout:
    """Rebuild a layout from plain values (files of tensors hold no classes of ours)."""
    return Layout(**{**values, "layers": Layers(**values.get("layers", {}))})


def logits(folder: str, layout: Layout, sequences: list[list[int]]) -> dict[str, Any]:
    """Logits of a bfloat16 model."""
    found = layer_jobs.logits(0, 1, folder, layout, sequences, torch.bfloat16)
    return {"logits": found["logits"].float().cpu(), "names": found["names"]}


def steps(folder: str, layout: Layout, algorithm: str) -> dict[str, Any]:
    """Two training steps; log-probs of the fixed rollouts before them."""
    trainer = _trainer(folder, layout, AlgorithmConfig(name=algorithm))
    rollouts = replica_rollouts(fixed_rollouts(), layout, trainer.groups)
    before = torch.cat([score.log_prob_R for score in trainer.score([r.sequence for r in rollouts])])
    again = replica_rollouts(fixed_rollouts(seed=4), layout, trainer.groups)
    results = [train_step(trainer, rollouts), train_step(trainer, again)]
    assert all(results)
    first = results[0]
    assert first is not None
    return {
        "log_probs": before,
        "sums": first.sums,
        "grad_norms": [result.optimizer.grad_norm for result in results if result],
        "padding": first.computed - first.tokens,
    }


def save(folder: str, root: str, layout: Layout) -> dict[str, Any]:
    """See :func:`tests.training.layer_jobs.save`."""
    return _on_host(layer_jobs.save(0, 1, folder, root, layout, torch.bfloat16))


def resume(folder: str, saved: str, layout: Layout) -> dict[str, Any]:
    """See :func:`tests.training.layer_jobs.resume`."""
    return _on_host(layer_jobs.resume(0, 1, folder, saved, layout, torch.bfloat16))


def export(folder: str, target: str, layout: Layout) -> dict[str, Any]:
    """Train a step, export the policy, and return its log-probs of the fixed rollouts."""
    trainer, rollouts = _trainer(folder, layout, GRPO), fixed_rollouts()
    train_step(trainer, rollouts)
    arch = Qwen3Architecture.from_hf_folder(folder)
    save_hf(trainer.policy, arch, trainer.groups, target, folder)
    return {"log_probs": [score.log_prob_R for score in trainer.score([r.sequence for r in rollouts])]}


def memory(folder: str, layout: Layout, tokens: int) -> dict[str, int]:
    """Train two steps on long rollouts; return bytes at the second step's peak and between steps."""
    trainer, rollouts = _trainer(folder, layout, GRPO), _long_rollouts(tokens)
    train_step(trainer, rollouts)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    train_step(trainer, rollouts)
    return {"peak": torch.cuda.max_memory_allocated(), "between": torch.cuda.memory_allocated()}


def kept_weights(folder: str, layout: Layout) -> dict[str, Any]:
    """Return the policy's weights as loaded, and after a step whose learning rate is 0."""
    still = OptimizerConfig(learning_rate=0.0, warmup_steps=0, weight_decay=0.0)
    trainer = _trainer(folder, layout, GRPO, still)
    loaded = full_weights(trainer, folder)
    train_step(trainer, fixed_rollouts())
    return {"loaded": _on_host(loaded), "after": _on_host(full_weights(trainer, folder))}


def _trainer(
    folder: str, layout: Layout, algorithm: AlgorithmConfig, optimizer: OptimizerConfig | None = None
) -> Trainer:
    return make_trainer(
        folder,
        layout.initialize(),
        algorithm,
        teacher=NO_TEACHER if algorithm is GRPO else None,
        optimizer=optimizer or OptimizerConfig(learning_rate=1e-4, warmup_steps=0),
        capacity=layout.capacity,
        dtype=torch.bfloat16,
        layout=layout,
    )


def _long_rollouts(tokens: int) -> list[FixedRollout]:
    """Eight responses of ``tokens`` tokens, half of them right."""
    generator = torch.Generator().manual_seed(0)
    rollouts = []
    for number in range(8):
        prompt, response = (
            tuple(torch.randint(0, 96, (length,), generator=generator).tolist()) for length in (16, tokens)
        )
        sequence = TokenSequence(prompt, response)
        rollouts.append(FixedRollout(0, sequence, sequence, float(number % 2), torch.full((tokens,), -4.0)))
    return rollouts


def _on_host(values: Any) -> Any:
    if isinstance(values, torch.Tensor):
        return values.cpu()
    return {key: _on_host(value) for key, value in values.items()} if isinstance(values, dict) else values


def plain_layout(layout: Layout) -> dict[str, Any]:
    """Return a layout as plain values."""
    return dataclasses.asdict(layout)


def main() -> None:
    """Do one job; the process group is made by the platform module, as in a real run."""
    name, source, target = sys.argv[1:]
    arguments = torch.load(Path(source), weights_only=True)
    arguments["layout"] = layout_of(arguments["layout"])
    place = platform.init_distributed(timeout_s=300)
    result = globals()[name](**arguments)
    if place.rank == 0:
        torch.save(result, Path(target))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
