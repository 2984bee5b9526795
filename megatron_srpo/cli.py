"""The command ``megatron-srpo``."""

import argparse
import re
import sys
from collections.abc import Callable, Sequence

from megatron_srpo import __version__
from megatron_srpo.commands import compare, doctor, evaluate, plan, recipes, report, serve, train
from megatron_srpo.errors import UserError

_EPILOG = """\
examples:
  megatron-srpo train --config examples/quickstart.yaml
  megatron-srpo train --config examples/quickstart.yaml algorithm.name=grpo output_dir=runs/grpo
  megatron-srpo train --config examples/quickstart.yaml --resume
  megatron-srpo train --options optimizer
  megatron-srpo compare --config examples/quickstart.yaml --seeds 1 2 3
  megatron-srpo doctor --config examples/quickstart.yaml
  megatron-srpo plan --model qwen3-8b --gpus 64
  megatron-srpo recipes qwen3-8b-srpo --num-nodes 2 --out run.yaml

Every command has its own --help.
"""

_OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=")

_COMMANDS = {
    "train": (train, "train a policy with SRPO, GRPO, SDPO or the advantage mix"),
    "serve": (serve, "start SGLang servers on this machine for a run on other machines"),
    "eval": (evaluate, "measure held-out accuracy of a Hugging Face folder"),
    "compare": (compare, "run several algorithms from the same weights and seeds; draw one figure"),
    "report": (report, "write the report page of a run"),
    "doctor": (doctor, "check machine, packages, config and model folder"),
    "plan": (plan, "predict memory and time of a layout, or search the layouts of N GPUs"),
    "recipes": (recipes, "list the recipes for Qwen3 0.6B to 32B, or write one as YAML"),
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
    for name, (module, summary) in _COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=summary,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    return parser


def overrides_first(arguments: list[str]) -> list[str]:
    """Move ``section.key=value`` behind the command: argparse would hand it to a ``--seeds 1`` before it."""
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
