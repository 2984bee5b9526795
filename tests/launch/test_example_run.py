"""An example, run for real: command line, nemo-run's local executor, torchrun ranks, one step of training."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_srpo.config.loader import load_config
from megatron_srpo.config.run import RunConfig
from megatron_srpo.launch.papers import PAPERS

pytest.importorskip("nemo_run", reason="nemo-run is not installed (make install-launch)")

ROOT = Path(__file__).parents[2]
#: What the recipe's GPUs and the paper's lengths are too large for here.
SMALL = (
    "config.model.dtype=float32",
    "config.rollout.engine=local",
    "config.rollout.placement=disaggregated",
    "config.rollout.prompts_per_step=4",
    "config.rollout.samples_per_prompt=2",
    "config.rollout.max_response_tokens=8",
    "config.data.max_prompt_tokens=192",
    "config.data.teacher.max_prompt_tokens=320",
    "config.training.prompts_per_mini_batch=4",
    "config.training.steps=1",
    "config.data.train=[{kind: reasoning_gym, family: chain_sum, size: 20}]",
    "config.data.eval=[]",
    "config.evaluation.before=False",
    "config.checkpoint.export_hf=False",
    "config.optimizer.learning_rate*=2",
)


@pytest.mark.slow
def test_an_example_trains_through_nemo_run(tmp_path: Path) -> None:
    """Two data-parallel ranks. nemo-run's own exit status says nothing (it is 0 after a failure), so the
    run's files are looked at."""
    output = tmp_path / "run"
    model = "examples/models/qwen3-tiny"
    command = [sys.executable, "examples/srpo.py", "--yes", "--factory"]
    command += [f"qwen3_0_6b_srpo(model={model}, num_gpus_per_node=2)"]
    command += [f"config.output_dir={output}", *SMALL]
    command += ["run.executor=torchrun", "run.executor.ntasks_per_node=2"]
    environment = {**os.environ, **_environment(), "NEMORUN_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert (output / "metrics.jsonl").is_file(), done.stdout[-4000:] + done.stderr[-4000:]
    config = load_config(RunConfig, output / "config.yaml")
    assert (config.model.path, config.training.steps, config.data.eval) == (model, 1, ())
    assert config.optimizer.learning_rate == 2 * PAPERS["srpo"].learning_rate
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1]
    assert rows[0]["tokens/trained"] > 0
    assert list((output / "checkpoints").iterdir())


def _environment() -> dict[str, str]:
    """The child finds this checkout and what this process was given; nemo-run finds torchrun by the path."""
    packages = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {"PYTHONPATH": packages, "PATH": programs}
