"""Run several algorithms from the same weights, prompts and seeds, and draw one figure.

Every run is an ordinary run in a folder of its own below --out; a run that is already complete is not
repeated, and one that was interrupted is resumed, so the command can be started again after a stop.
"""

import argparse
import json
from pathlib import Path

from megatron_srpo.commands.common import (
    add_config_arguments,
    add_replicas_argument,
    launch_ranks,
    run_config,
)
from megatron_srpo.config.algorithm import ALGORITHM_NAMES
from megatron_srpo.config.run import RunConfig
from megatron_srpo.report.compare import write_comparison
from megatron_srpo.report.metrics import read_metrics
from megatron_srpo.session.preflight import check_output, check_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``megatron-srpo compare``."""
    add_config_arguments(parser)
    parser.add_argument(
        "--algorithms",
        nargs="+",
        default=["grpo", "sdpo", "srpo"],
        choices=ALGORITHM_NAMES,
        metavar="NAME",
        help=f"which ones (default: grpo sdpo srpo; known: {', '.join(ALGORITHM_NAMES)})",
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[1], metavar="N", help="one run per seed (default: 1)"
    )
    parser.add_argument("--out", default="runs/compare", help="folder for the runs and the figure")
    add_replicas_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Make the runs that are missing, then the figure; return the exit status of the first failure."""
    folders: dict[str, list[Path]] = {name: [] for name in arguments.algorithms}
    for seed in arguments.seeds:
        for name in arguments.algorithms:
            folder = Path(arguments.out) / f"{name}_seed{seed}"
            status = _train(arguments, name, seed, folder)
            if status:
                return status
            folders[name].append(folder)
    paths = write_comparison(folders, arguments.out, title="Comparison of algorithms")
    print("\n".join(f"{kind}: {path}" for kind, path in paths.items()))
    return 0


def _train(arguments: argparse.Namespace, name: str, seed: int, folder: Path) -> int:
    changes = [f"algorithm.name={name}", f"seed={seed}", f"data.seed={seed}"]
    # In quotes, so that a folder named 2026 or "a: b" stays text.
    overrides = [*arguments.overrides, *changes, f"output_dir={json.dumps(str(folder))}"]
    config = run_config(argparse.Namespace(config=arguments.config, overrides=overrides))
    resume = (folder / "config.yaml").exists()
    ranks = config.parallel.fewest_ranks * arguments.replicas
    check_run(config, ranks)
    check_output(config, resume)
    if resume and _is_complete(config, folder):
        print(f"{folder}: already complete")
        return 0
    print(f"{folder}: {'resuming' if resume else 'starting'}")
    given = ["--config", arguments.config] if arguments.config else []
    return launch_ranks(ranks, ["train", *given, *(["--resume"] if resume else []), *overrides])


def _is_complete(config: RunConfig, folder: Path) -> bool:
    rows = read_metrics(folder / "metrics.jsonl")
    return bool(rows) and rows[-1]["step"] == config.training.steps
