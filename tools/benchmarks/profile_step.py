"""Profiles training steps: seconds per phase, and inside each phase where they go (first rank).

    python -m tools.benchmarks.profile_step --config examples/quickstart.yaml --steps 5
    python -m tools.benchmarks.profile_step --config examples/quickstart.yaml algorithm.name=grpo --ops 25

Runs the loop's own `train_step` in as many ranks as the config asks for (times --replicas), with evaluation
and checkpoints off and into a temporary folder. Times are medians over the measured steps. "processor" counts
this rank's threads only; "wall" of a collective holds waiting for the other ranks. --ops adds
torch.profiler's operators of one more step by self time (that step is slower: the profiler costs).
"""

import argparse
import dataclasses
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch

from megatron_srpo import platform
from megatron_srpo.commands.common import add_config_arguments, add_replicas_argument, run_config
from megatron_srpo.config.run import RunConfig
from megatron_srpo.errors import UserError
from megatron_srpo.session.run import Run
from tools.benchmarks.sections import Seconds, SectionTimer, install

Table = dict[tuple[str, str], Seconds]

#: Wrapped functions and the sections that they make up.
TARGETS = (
    ("megatron_srpo.training.trainer:micro_batches", "packing"),
    ("megatron_srpo.training.scoring:micro_batches", "packing"),
    ("megatron_srpo.training.teacher:micro_batches", "packing"),
    ("megatron_srpo.training.schedule:_run", "schedule"),
    ("megatron.core.models.gpt.gpt_model:GPTModel.forward", "forward"),
    ("megatron_srpo.model.attention:CausalAttention.forward", "forward: attention"),
    ("torch.autograd:backward", "backward"),
    ("megatron_srpo.training.loss:StepLoss.__call__", "loss: token losses"),
    ("megatron_srpo.training.loss:fused_linear_loss", "fused loss"),
    ("megatron_srpo.training.scoring:fused_linear_log_prob", "fused log-probs"),
    ("megatron_srpo.ops.head:LinearHead.logits", "head: logits"),
    ("megatron_srpo.ops.head:HeadGradients.add", "head: gradients"),
    ("megatron_srpo.ops.rows:TorchRows.divergence_", "loss: divergence"),
    ("megatron_srpo.training.optimizer:finalize_model_grads", "gradient reduction"),
    ("megatron_srpo.training.optimizer:PolicyOptimizer.step", "optimizer"),
    ("megatron_srpo.training.optimizer:PolicyOptimizer.zero_grad", "optimizer"),
    ("megatron_srpo.training.teacher:Teacher.update", "teacher average"),
    ("megatron_srpo.rollout.decode:DecodeBatch._prefill", "prefill"),
    ("megatron_srpo.rollout.decode:DecodeBatch._step", "decode: model"),
    ("megatron_srpo.rollout.decode:DecodeBatch._compact", "decode: compaction"),
    ("megatron_srpo.rollout.decode:sample_tokens", "decode: sampling"),
    ("megatron_srpo.session.run:make_rollouts", "detokenise"),
    ("megatron_srpo.rewards.pool:RewardPool.score", "verifiers"),
    ("megatron_srpo.session.lessons:TeacherPrompts.sequences", "teacher prompts"),
    ("megatron_srpo.session.run:Run.streams", "streams"),
    ("megatron_srpo.training.shared_work:WorkDealer.deal", "work of other replicas"),
    ("megatron_srpo.training.shared_work:SharedWork.bring_home", "work of other replicas"),
    ("megatron_srpo.training.shared_work:SharedWork.samples", "work of other replicas"),
    ("torch.distributed:all_reduce", "collectives"),
    ("torch.distributed:all_to_all_single", "collectives"),
    ("torch.distributed:all_gather", "collectives"),
    ("torch.distributed:all_gather_object", "collectives: objects"),
    ("torch.distributed:broadcast", "collectives"),
    ("torch.distributed:broadcast_object_list", "collectives: objects"),
    ("torch.distributed:barrier", "collectives"),
)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    add_replicas_argument(parser)
    parser.add_argument("--steps", type=int, default=5, help="steps measured (%(default)s)")
    parser.add_argument("--warm-up", type=int, default=1, help="steps run first (%(default)s)")
    parser.add_argument("--ops", type=int, default=0, metavar="N", help="list N operators of one more step")
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    return parser.parse_args(arguments)


def quiet(config: RunConfig, folder: str) -> RunConfig:
    """Return the config without evaluation, checkpoints and export, writing into ``folder``."""
    return dataclasses.replace(
        config,
        output_dir=folder,
        evaluation=dataclasses.replace(config.evaluation, every=0, before=False, after=False),
        checkpoint=dataclasses.replace(config.checkpoint, every=0, at_end=False, export_hf=False),
    )


def launch(ranks: int, arguments: Sequence[str]) -> int:
    """Start this module as ``ranks`` torchrun workers on this machine."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    script = ["-m", "tools.benchmarks.profile_step", *arguments]
    return subprocess.call([sys.executable, *command, *script], env=platform.child_environment())


def profile(config: RunConfig, arguments: argparse.Namespace) -> str | None:
    """Run and measure; return the report on the first rank, ``None`` elsewhere."""
    from megatron_srpo import loop
    from megatron_srpo.session.build import open_run

    timer = SectionTimer()
    tables: list[Table] = []
    with tempfile.TemporaryDirectory() as folder, open_run(quiet(config, folder), resume=False) as run:
        install(timer, TARGETS)
        phase = run.recorder.phase
        run.recorder.__dict__["phase"] = lambda name: both(phase(name), timer, name)
        for step in range(arguments.warm_up + arguments.steps):
            timer.table = defaultdict(Seconds)
            loop.train_step(run)
            run.recorder.seconds.clear()
            if step >= arguments.warm_up:
                tables.append(timer.table)
        operators = _operators(run, arguments.ops) if arguments.ops else ""
        if not run.recorder.active:
            return None
    return "\n".join([describe(config), "", *table_lines(tables), *([operators] if operators else [])])


@contextmanager
def both(outer: AbstractContextManager[None], timer: SectionTimer, name: str) -> Iterator[None]:
    """Open the recorder's phase and the timer's."""
    with outer, timer.in_phase(name):
        yield


def _operators(run: Run, count: int) -> str:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    from megatron_srpo import loop

    with torch_profile(activities=[ProfilerActivity.CPU]) as recorded:
        loop.train_step(run)
    table = recorded.key_averages().table(sort_by="self_cpu_time_total", row_limit=count)
    return f"\n```\n{table}\n```"


def describe(config: RunConfig) -> str:
    """Say in one line what was measured."""
    rollout, parallel = config.rollout, config.parallel
    return (
        f"{config.algorithm.name}, {rollout.prompts_per_step} x {rollout.samples_per_prompt} rollouts, "
        f"at most {rollout.max_response_tokens} tokens, TP {parallel.tensor} x PP {parallel.pipeline}, "
        f"{torch.get_num_threads()} thread(s) per rank, torch {torch.__version__}"
    )


def table_lines(tables: Sequence[Table]) -> list[str]:
    """Return a Markdown table: per phase its sections, largest first; medians over the steps."""
    keys = dict.fromkeys(key for table in tables for key in table)
    median = {key: _median([table.get(key, Seconds()) for table in tables]) for key in keys}
    total = sum(seconds.wall for seconds in median.values())
    lines = ["| phase | section | wall s | share | processor s | calls |", "|---|---|---:|---:|---:|---:|"]
    for phase in dict.fromkeys(phase for phase, _ in keys):
        sections = {name: seconds for (owner, name), seconds in median.items() if owner == phase}
        lines.append(_row(f"**{phase}**", "", _sum(sections.values()), total))
        for name, seconds in sorted(sections.items(), key=lambda item: -item[1].wall):
            lines.append(_row("", name, seconds, total))
    return [*lines, _row("**step**", "", _sum(median.values()), total)]


def _median(values: Sequence[Seconds]) -> Seconds:
    return Seconds(
        statistics.median(value.wall for value in values),
        statistics.median(value.processor for value in values),
        round(statistics.median(value.calls for value in values)),
    )


def _sum(values: Iterable[Seconds]) -> Seconds:
    parts = list(values)
    return Seconds(sum(part.wall for part in parts), sum(part.processor for part in parts), 0)


def _row(phase: str, section: str, seconds: Seconds, total: float) -> str:
    calls = str(seconds.calls) if section else ""
    return (
        f"| {phase} | {section} | {seconds.wall:.3f} | {seconds.wall / total:.1%} | "
        f"{seconds.processor:.3f} | {calls} |"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parsed = parse(given)
    try:
        config = run_config(parsed)
        ranks = config.parallel.replica * parsed.replicas
        if ranks > 1 and platform.rank_environment() is None:
            return launch(ranks, given)
        report = profile(config, parsed)
    except UserError as error:
        print(f"profile_step: error: {error}", file=sys.stderr)
        return 2
    if report is not None:
        print(report)
        if parsed.output:
            parsed.output.write_text(report + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
