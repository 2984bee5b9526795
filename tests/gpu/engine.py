"""Starts the runs of ``engine_runs`` and says what this GPU cannot run."""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_srpo import platform
from megatron_srpo.model.precision import Layers, why_not_fp8, why_not_transformer_engine
from tests.gpu.engine_runs import plain_layout
from tests.model.tiny import write_random_qwen3
from tests.training.harness import Layout

ROOT = Path(__file__).parents[2]
LOCAL, ENGINE = Layers(), Layers("transformer_engine")


def need_engine() -> None:
    """Skip, with the reason, where Transformer Engine's layers cannot run."""
    reason = why_not_transformer_engine(platform.accelerator())
    if reason is not None:
        pytest.skip(f"needs Transformer Engine: {reason}")


def need_recipe(recipe: str) -> None:
    """Skip, with the reason, where an FP8 recipe cannot run."""
    need_engine()
    reason = why_not_fp8(recipe, platform.accelerator())
    if reason is not None:
        pytest.skip(f"needs another GPU for {recipe}: {reason}")


def write_model(folder: Path, **overrides: Any) -> str:
    """Write a random model of sizes that every recipe takes, with usual head and layer sizes."""
    sizes = {
        "num_hidden_layers": 4,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "initializer_range": 0.06,  # 1 / sqrt(256): activations keep their size from layer to layer
        "max_position_embeddings": 8192,
    }
    return str(write_random_qwen3(folder, **{**sizes, **overrides}))


def on_gpu(job: str, layout: Layout, ranks: int = 1, **arguments: Any) -> Any:
    """Do one job of ``engine_runs`` in processes of its own; return what the first rank returned."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "input.pt"), Path(folder, "output.pt")
        torch.save({**arguments, "layout": plain_layout(layout)}, source)
        launch = [f"--nproc-per-node={ranks}", "--standalone", "-m", "tests.gpu.engine_runs"]
        command = [sys.executable, "-m", "torch.distributed.run", *launch, job, str(source), str(target)]
        environment = platform.child_environment({"PYTHONPATH": str(ROOT)})
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return torch.load(target, weights_only=True)


def response_log_probs(folder: str, sequences: list[Any]) -> list[torch.Tensor]:
    """Return transformers' fp32 log-probs of every response after its prompt."""
    from tests.model.tiny import reference_logits

    inputs = [[*sequence.prompt, *sequence.response] for sequence in sequences]
    found = []
    for sequence, logits in zip(sequences, reference_logits(folder, inputs), strict=True):
        first = len(sequence.prompt) - 1
        rows = logits[first : first + len(sequence.response)].log_softmax(-1)
        found.append(rows.gather(1, torch.tensor(sequence.response)[:, None])[:, 0])
    return found
