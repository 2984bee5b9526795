"""The command ``megatron-srpo``."""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

from megatron_srpo import __version__
from megatron_srpo.commands import (
    compare,
    doctor,
    evaluate,
    jobs,
    launch,
    memory,
    plan,
    recipes,
    report,
    self_play,
    serve,
    train,
)
from megatron_srpo.errors import UserError

_EPILOG = """\
examples:
  megatron-srpo train --config examples/quickstart.yaml
  megatron-srpo train --config examples/quickstart.yaml algorithm.name=grpo output_dir=runs/grpo
  megatron-srpo train --config examples/quickstart.yaml --resume
  megatron-srpo train --options optimizer
  megatron-srpo eval --model models/Qwen3-4B --benchmark math500 aime24 --data data
  megatron-srpo self-play --config examples/self_play/r_diverse.yaml
  megatron-srpo memory search runs/self-play "How many apples are left?"
  megatron-srpo serve --config run.yaml --register /shared/servers --slot 2
  megatron-srpo compare --config examples/quickstart.yaml --seeds 1 2 3
  megatron-srpo doctor --config examples/quickstart.yaml
  megatron-srpo plan --model qwen3-8b --gpus 64
  megatron-srpo recipes qwen3-8b-srpo --num-nodes 2 --out run.yaml
  megatron-srpo launch --recipe qwen3-8b-srpo --launch cluster.yaml launch.nodes=2 --dry-run
  megatron-srpo status runs/qwen3-8b-srpo

Every command has its own --help.
"""

_OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=")


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        summary: its line in the list of commands.
        description: what its own ``--help`` begins with.
        add_arguments: declares its options.
        run: does it and returns the exit status.
    """

    summary: str
    description: str | None
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def _of(module: ModuleType, summary: str) -> Command:
    return Command(summary, module.__doc__, module.add_arguments, module.run)


def _on_run(
    run: Callable[[argparse.Namespace], int],
    summary: str,
    add_arguments: Callable[[argparse.ArgumentParser], None] = jobs.add_run_arguments,
) -> Command:
    return Command(summary, run.__doc__, add_arguments, run)


_COMMANDS = {
    "train": _of(train, "train a policy with SRPO, GRPO, SDPO or the advantage mix"),
    "self-play": _of(self_play, "train a Challenger and a Solver in turn (R-Zero, R-Diverse)"),
    "memory": _of(memory, "show, search or measure the memory of a self-play"),
    "eval": _of(evaluate, "measure avg@k, pass@k and maj@k of a model or checkpoint on benchmarks"),
    "compare": _of(compare, "run several algorithms from the same weights and seeds; draw one figure"),
    "report": _of(report, "write the report page of a run"),
    "doctor": _of(doctor, "check machine, packages, config and model folder"),
    "plan": _of(plan, "predict memory and time of a layout, or search the layouts of N GPUs"),
    "recipes": _of(recipes, "list the recipes for Qwen3 0.6B to 32B, or write one as YAML"),
    "serve": _of(serve, "start SGLang servers on this machine for a run on other machines"),
    "launch": _of(launch, "launch a run on a Slurm cluster, or here, and watch it"),
    "status": _on_run(jobs.status, "say how a launched run is doing"),
    "logs": _on_run(jobs.logs, "show the logs of a launched run", jobs.add_logs_arguments),
    "attach": _on_run(jobs.attach, "watch a launched run to its end"),
    "cancel": _on_run(jobs.cancel, "end a launched run", jobs.add_cancel_arguments),
}


def make_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="megatron-srpo",
        description="SRPO: correct samples to GRPO, failed ones to logit-level self-distillation.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"megatron-srpo {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in _COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=command.summary,
            description=command.description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(sub)
        sub.set_defaults(run=command.run)
    return parser


def overrides_first(arguments: list[str]) -> list[str]:
    """Move ``section.key=value`` behind the command: argparse would hand it to a ``--seeds 1`` before it.

    A command that takes none keeps its order: a question may begin with ``x=3``.
    """
    if arguments[:1] == ["memory"]:
        return arguments
    found = [argument for argument in arguments[1:] if _OVERRIDE.match(argument)]
    return [*arguments[:1], *found, *(argument for argument in arguments[1:] if argument not in found)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status (2 for an error that the user can mend)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parsed = make_parser().parse_args(overrides_first(given))
    run: Callable[[argparse.Namespace], int] = parsed.run
    try:
        return run(parsed)
    except UserError as error:
        print(f"megatron-srpo: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("megatron-srpo: interrupted; continue with --resume", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
