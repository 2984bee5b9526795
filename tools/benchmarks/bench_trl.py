"""Times a training step of this project against TRL's GRPOTrainer and SDPOTrainer, side by side.

    python -m tools.benchmarks.bench_trl          # about 10 minutes on two idle cores
    python -m tools.benchmarks.bench_trl --algorithms grpo --layouts 1-core --steps 8 --output /tmp/trl.json

Same model, same prompts in the same order, same number of samples, same response limit, same verifiers, one
AdamW step per rollout batch, fp32, on the same cores. All lanes of a comparison live at once and step in turn
(A B A B ...). Each side samples its own responses, so seconds are also given per response token, and the
ratio (TRL's seconds per response token over ours, round by round) is taken from that. "processor" counts user
and system seconds of all processes of a lane, verifiers included: the number to trust on a busy machine.

Layouts: "1-core", one process with one thread; "2-cores", two processes: ours as TP 2 and as DP 2, TRL as two
data-parallel processes (gloo). With the SDPO comparison runs our SRPO, which has no trainer in TRL.

Left out: start-up, evaluation, logging, checkpoints, on both sides. Not measured: vLLM (needs a GPU).
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_srpo.errors import UserError
from tools.benchmarks.lane import BenchmarkError, Lane, LaneSpec
from tools.benchmarks.trl_side import check_micro_batch, require_trl
from tools.benchmarks.workload import benchmark_config, check_same_work

Records = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Contestant:
    """A lane in short: which side, which algorithm, how it is spread over the cores."""

    side: str
    algorithm: str
    ranks: int = 1
    tensor: int = 1

    @property
    def name(self) -> str:
        """Name in tables."""
        if self.side == "trl_side":
            return f"TRL {self.algorithm.upper()}" + (f", {self.ranks} processes" if self.ranks > 1 else "")
        replicas = self.ranks // self.tensor
        layout = [f"TP {self.tensor}"] * (self.tensor > 1) + [f"DP {replicas}"] * (replicas > 1)
        return ", ".join([f"ours {self.algorithm.upper()}", *layout])


def contestants(algorithm: str, layout: str) -> list[Contestant]:
    """Return the lanes of a comparison; TRL's comes last."""
    ours = [algorithm, "srpo"] if algorithm == "sdpo" else [algorithm]
    spreads = [(1, 1)] if layout == "1-core" else [(2, 2), (2, 1)]
    lanes = [Contestant("our_side", name, *spread) for name in ours for spread in spreads]
    return [*lanes, Contestant("trl_side", algorithm, spreads[0][0])]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config", default="examples/quickstart.yaml", help="run configuration (%(default)s)"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="change single keys")
    parser.add_argument("--algorithms", nargs="+", choices=("grpo", "sdpo"), default=["grpo", "sdpo"])
    parser.add_argument("--layouts", nargs="+", choices=("1-core", "2-cores"), default=["1-core", "2-cores"])
    parser.add_argument("--steps", type=int, default=5, help="measured steps of each lane (%(default)s)")
    parser.add_argument("--warm-up", type=int, default=1, help="steps before them (%(default)s)")
    parser.add_argument(
        "--trl-micro-batch",
        type=int,
        default=32,
        metavar="N",
        help="TRL: responses per forward pass (%(default)s)",
    )
    parser.add_argument("--output", type=Path, help="write all records to this JSON file")
    parsed = parser.parse_args(arguments)
    for name in ("steps", "trl_micro_batch"):
        if parsed.__dict__[name] < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if parsed.warm_up < 0:
        parser.error("--warm-up must be at least 0")
    return parsed


def lane_spec(who: Contestant, arguments: argparse.Namespace, folder: Path) -> LaneSpec:
    """Return the full description of a lane."""
    return LaneSpec(
        name=who.name,
        side=who.side,
        config=arguments.config,
        overrides=(
            *arguments.overrides,
            f"algorithm.name={who.algorithm}",
            f"parallel.tensor={who.tensor}",
            "parallel.pipeline=1",
        ),
        steps=arguments.warm_up + arguments.steps,
        control=str(folder / "control"),
        ranks=who.ranks,
        cpus=available_cores(who.ranks),
        micro_batch=arguments.trl_micro_batch,
    )


def available_cores(count: int) -> tuple[int, ...]:
    """Return the first ``count`` cores that this process may use.

    Raises:
        BenchmarkError: there are fewer.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < count:
        raise BenchmarkError(
            f"{count} cores are needed, {len(cores)} are available; leave out --layouts 2-cores"
        )
    return tuple(cores[:count])


@contextmanager
def started(specs: Sequence[tuple[LaneSpec, Path]]) -> Iterator[list[Lane]]:
    """Start lanes one after the other and end them all."""
    lanes: list[Lane] = []
    try:
        for spec, folder in specs:
            lanes.append(Lane(spec, folder))
            lanes[-1].wait_ready()
        yield lanes
    finally:
        for lane in lanes:
            lane.stop()


def measure(algorithm: str, layout: str, arguments: argparse.Namespace) -> tuple[Records, dict[str, Any]]:
    """Run one comparison; return the measured steps and the settings by lane.

    Raises:
        BenchmarkError: a lane failed, or the lanes did not do the same work.
    """
    with tempfile.TemporaryDirectory(prefix="bench") as name:
        specs = []
        for number, who in enumerate(contestants(algorithm, layout)):
            folder = Path(name) / str(number)
            folder.mkdir()
            specs.append((lane_spec(who, arguments, folder), folder))
        with started(specs) as lanes:
            for step in range(arguments.warm_up + arguments.steps):
                for lane in lanes:
                    lane.step()
                _say(layout, step, lanes)
        everything = {lane.spec.name: lane.records for lane in lanes}
        check_same_work(everything)
        measured = {lane: steps[arguments.warm_up :] for lane, steps in everything.items()}
        return measured, {lane.spec.name: lane.settings for lane in lanes}


def _say(layout: str, step: int, lanes: Sequence[Lane]) -> None:
    walls = ", ".join(f"{lane.spec.name} {lane.records[-1]['wall']:.2f} s" for lane in lanes)
    print(f"{layout}, round {step}: {walls}", file=sys.stderr)


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Write a median with its range."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def per_token(records: Sequence[dict[str, Any]], key: str) -> list[float]:
    """Return seconds per response token of every step."""
    return [record[key] / record["response_tokens"] for record in records]


def ratios(theirs: Sequence[dict[str, Any]], ours: Sequence[dict[str, Any]], key: str) -> list[float]:
    """Return, round by round, their seconds per response token over ours: above 1, ours is faster."""
    pairs = zip(per_token(theirs, key), per_token(ours, key), strict=True)
    return [their / our for their, our in pairs]


def phase_ratio(theirs: Sequence[dict[str, Any]], ours: Sequence[dict[str, Any]], phase: str) -> float:
    """Return the median over rounds of their wall seconds per response token in a phase over ours."""
    pairs = zip(theirs, ours, strict=True)
    return statistics.median(
        (their["phases"][phase] / their["response_tokens"]) / (our["phases"][phase] / our["response_tokens"])
        for their, our in pairs
    )


def table(records: Records) -> list[str]:
    """Return a Markdown table of one comparison; the last lane is TRL's."""
    *_, trl = records.values()
    lines = [
        "| | wall s per step | processor s per step | generate / reward / train s | response tokens per step "
        "| response tokens per s | ratio, wall | ratio, processor | ratio, generate / train |",
        "|---|---|---|---|---:|---:|---|---|---|",
    ]
    return lines + [_row(name, steps, trl) for name, steps in records.items()]


def _row(name: str, steps: list[dict[str, Any]], trl: list[dict[str, Any]]) -> str:
    phases = " / ".join(
        f"{statistics.median(step['phases'][phase] for step in steps):.2f}"
        for phase in ("generate", "reward", "train")
    )
    speed = statistics.median(1 / seconds for seconds in per_token(steps, "wall"))
    own = steps is trl
    cells = [
        name,
        spread([step["wall"] for step in steps]),
        spread([step["processor"] for step in steps]),
        phases,
        f"{statistics.median(step['response_tokens'] for step in steps):.0f}",
        f"{speed:.0f}",
        "1" if own else f"**{spread(ratios(trl, steps, 'wall'))}**",
        "1" if own else f"**{spread(ratios(trl, steps, 'processor'))}**",
        "1" if own else " / ".join(f"{phase_ratio(trl, steps, p):.2f}" for p in ("generate", "train")),
    ]
    return f"| {' | '.join(cells)} |"


def versions() -> str:
    """Return the versions that the numbers depend on."""
    import importlib.metadata as metadata

    packages = ("torch", "transformers", "trl", "accelerate", "megatron-core")
    return ", ".join(f"{name} {metadata.version(name)}" for name in packages)


def check(arguments: argparse.Namespace) -> None:
    """Refuse what cannot work before anything starts."""
    require_trl()
    config = benchmark_config(arguments.config, arguments.overrides)
    for layout in arguments.layouts:
        world = contestants("grpo", layout)[-1].ranks
        available_cores(world)
        check_micro_batch(config.rollout.responses_per_step, world, arguments.trl_micro_batch)


def compare(arguments: argparse.Namespace) -> None:
    """Run all comparisons; print tables as they come, write the records."""
    check(arguments)
    print(f"{versions()}; load average at the start {os.getloadavg()[0]:.1f}\n", flush=True)
    results: list[dict[str, Any]] = []
    for layout in arguments.layouts:
        for algorithm in arguments.algorithms:
            begun = time.monotonic()
            records, settings = measure(algorithm, layout, arguments)
            load = os.getloadavg()[0]
            print(f"### {algorithm.upper()}, {layout} ({arguments.steps} rounds, load average {load:.1f})\n")
            print("\n".join(table(records)) + "\n", flush=True)
            print(f"{layout} {algorithm}: {time.monotonic() - begun:.0f} s", file=sys.stderr)
            results.append(
                {
                    "layout": layout,
                    "algorithm": algorithm,
                    "load": load,
                    "records": records,
                    "settings": settings,
                }
            )
            if arguments.output:
                content = {"versions": versions(), "results": results}
                arguments.output.write_text(
                    json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8"
                )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    try:
        compare(parse(arguments))
    except UserError as error:
        print(f"bench_trl: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
