"""A lane that runs this project's training loop: `python -m tools.benchmarks.our_side SPEC` (see lane.py)."""

import dataclasses
import sys
import tempfile
from typing import Any

from megatron_srpo.config.run import RunConfig
from tools.benchmarks.lane import Gate, LaneSpec, RankFacts, pin
from tools.benchmarks.workload import benchmark_config

#: Which of the loop's phases belong to what both sides have.
GENERATE = ("generate", "sync")
TRAIN = ("score", "teacher", "update")


def step_facts(run: Any, seen: list[Any]) -> RankFacts:
    """Describe the step just made; the loop's own phase clocks are read and reset."""
    seconds = run.recorder.seconds
    phases = {
        "generate": sum(seconds[name] for name in GENERATE),
        "reward": seconds["reward"],
        "train": sum(seconds[name] for name in TRAIN),
    }
    seconds.clear()
    facts = RankFacts(phases=phases)
    if run.groups.is_leader:
        facts.prompts = [(item.place, item.tokens) for item in seen]
        facts.responses = len(seen) * run.config.rollout.samples_per_prompt
    if run.groups.replica.rank() == 0 and run.groups.dp_rank == 0:
        facts.response_tokens = int(run.row["tokens/response"])  # counted over all replicas
    return facts


def run_lane(spec: LaneSpec, config: RunConfig) -> None:
    """Make the lane's steps."""
    from megatron_srpo import loop
    from megatron_srpo.session.build import open_run

    with open_run(config, resume=False) as run:
        gate = Gate(spec)
        gate.ready(describe(config, spec))
        for _ in range(spec.steps):
            seen = run.prompts_of(run.step)
            gate.open()
            loop.train_step(run)
            gate.close(step_facts(run, seen))


def describe(config: RunConfig, spec: LaneSpec) -> dict[str, Any]:
    """Return the settings that decide the time."""
    return {
        "algorithm": config.algorithm.name,
        "tensor_parallel": config.parallel.tensor,
        "data_parallel": spec.ranks // config.parallel.replica,
        "threads": spec.threads,
        "micro_batch_tokens": config.training.micro_batch_tokens,
        "dtype": config.model.dtype,
        "engine": config.rollout.engine,
        "local_batch_size": config.rollout.local_batch_size,
        "reward_workers": config.reward.workers,
    }


def main(path: str) -> None:
    """Run the lane whose spec lies at ``path``."""
    spec = LaneSpec.load(path)
    pin(spec)
    config = benchmark_config(spec.config, spec.overrides)
    with tempfile.TemporaryDirectory() as folder:
        run_lane(spec, dataclasses.replace(config, output_dir=folder))


if __name__ == "__main__":
    main(sys.argv[1])
