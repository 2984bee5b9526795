"""Self-plays of the examples, made small."""

from pathlib import Path

from megatron_srpo.config.loader import load_config
from megatron_srpo.config.self_play import SelfPlayConfig

ROOT = Path(__file__).resolve().parents[2]

#: Two iterations in seconds. Nothing is told about accuracy by so few questions.
SMALL = (
    "iterations=2",
    "pool.questions=40",
    "pool.block=60",
    "votes.samples=5",
    "challenger.training.steps=2",
    "challenger.rollout.prompts_per_step=4",
    "solver.training.steps=2",
    "solver.rollout.prompts_per_step=4",
    "solver.evaluation.samples_per_prompt=1",
    "solver.evaluation.max_prompts=12",
    *(f"{role}.model.path={ROOT}/examples/models/qwen3-self-play" for role in ("challenger", "solver")),
    f"solver.data.eval.0.path={ROOT}/examples/self_play/eval.jsonl",
)


def example(name: str) -> Path:
    """Return the configuration file of an example."""
    return ROOT / "examples" / "self_play" / f"{name}.yaml"


def small_play(name: str, folder: Path, *overrides: str) -> SelfPlayConfig:
    """Return an example's configuration, made small."""
    return load_config(SelfPlayConfig, example(name), [*SMALL, f"output_dir={folder}", *overrides])
