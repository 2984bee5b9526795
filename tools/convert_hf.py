"""Convert a Qwen3 between Hugging Face format and a Megatron distributed checkpoint.

Starts its own ranks: `python tools/convert_hf.py import ... --tensor-parallel 2` needs no torchrun. (Under
torchrun, for models that need several nodes, it takes part as one rank.) Left out: other models, quantised
weights, optimizer states.
"""

# Only the standard library at module level: Megatron-Core's checkpoint writer starts helper processes that
# import this file again.
import argparse
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TIMEOUT_S = 3600.0

DESCRIPTION = """\
Convert a Qwen3 between Hugging Face format (safetensors, one file or sharded) and a Megatron
distributed checkpoint. Data type and every bit of every tensor are kept. A checkpoint written with one
layout can be read with any other. Each rank reads only its own slices, so its memory stays near its shard.
"""

EXAMPLES = """\
examples:
  # Hugging Face -> Megatron, on two ranks, and check the result against transformers
  python tools/convert_hf.py import models/Qwen3-4B checkpoints/Qwen3-4B --tensor-parallel 2 --verify

  # Megatron -> Hugging Face; the folder then loads with AutoModelForCausalLM
  python tools/convert_hf.py export checkpoints/Qwen3-4B models/Qwen3-4B-again --verify

  # the policy of a training run; config and tokenizer come from the model that the run began with
  python tools/convert_hf.py export runs/a/checkpoints/step_00000020 models/a --hf-files models/Qwen3-4B
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = parse(arguments)
    from megatron_srpo import platform
    from megatron_srpo.errors import UserError

    try:
        if platform.rank_environment() is None:
            check_before_start(options)
            if ranks_of(options) > 1:
                return launch(options, sys.argv[1:] if arguments is None else arguments)
        convert(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=DESCRIPTION, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="{import,export}")
    importing = commands.add_parser("import", help="Hugging Face folder -> Megatron checkpoint")
    exporting = commands.add_parser("export", help="Megatron checkpoint -> Hugging Face folder")
    for command, kind in ((importing, "Hugging Face folder"), (exporting, "Megatron checkpoint")):
        command.add_argument("source", type=Path, help=f"{kind} to read")
        command.add_argument("target", type=Path, help="folder to write; must not exist yet")
        add = command.add_argument
        add("--tensor-parallel", type=positive, default=1, metavar="N", help="ranks per layer (default 1)")
        add("--pipeline-parallel", type=positive, default=1, metavar="N", help="stages (default 1)")
        add("--expert-parallel", type=positive, default=1, metavar="N", help="ranks per experts (default 1)")
        add("--verify", action="store_true", help="compare fp32 logits with transformers afterwards")
    exporting.add_argument(
        "--hf-files",
        type=Path,
        metavar="FOLDER",
        help="folder of config.json and tokenizer (default: SOURCE)",
    )
    exporting.add_argument(
        "--max-file-gb",
        type=float,
        default=4.0,
        metavar="GB",
        help="size of one safetensors file (default 4)",
    )
    return parser.parse_args(arguments)


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def ranks_of(options: argparse.Namespace) -> int:
    """Return the ranks that hold one copy of the model."""
    return max(options.tensor_parallel, options.expert_parallel) * options.pipeline_parallel


def check_before_start(options: argparse.Namespace) -> None:
    """Find what is wrong before any rank is started and Megatron-Core is imported."""
    from megatron_srpo.errors import CheckpointError
    from megatron_srpo.model.architecture import Qwen3Architecture, check_layout
    from megatron_srpo.model.stages import PipelineStages
    from megatron_srpo.weights.hf_files import open_hf

    importing = options.command == "import"
    arch = Qwen3Architecture.from_hf_folder(
        options.source if importing else options.hf_files or options.source
    )
    stages = PipelineStages(options.pipeline_parallel)
    check_layout(arch, options.tensor_parallel, stages, options.expert_parallel)
    if options.target.exists():
        raise CheckpointError(f"{options.target} exists; remove it or choose another folder")
    if importing:
        open_hf(arch, options.source)


def launch(options: argparse.Namespace, arguments: list[str]) -> int:
    """Run this file on as many ranks of this machine as the layout has."""
    from megatron_srpo import platform

    ranks = f"--nproc-per-node={ranks_of(options)}"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", ranks]
    command = [*launcher, __file__, *arguments]
    return subprocess.run(command, env=platform.child_environment(), check=False).returncode


def convert(options: argparse.Namespace) -> None:
    """Convert on this rank."""
    import torch.distributed as dist

    # Megatron-Core and torch announce their own future deprecations to whoever uses them.
    warnings.simplefilter("ignore", FutureWarning)
    from megatron_srpo import platform
    from megatron_srpo.model.parallel import initialize_parallel
    from megatron_srpo.weights import convert as conversion

    place = platform.init_distributed(TIMEOUT_S)
    groups = initialize_parallel(
        options.tensor_parallel, options.pipeline_parallel, expert=options.expert_parallel
    )
    importing = options.command == "import"
    with progress_bar(visible=place.rank == 0) as show:
        if importing:
            memory = conversion.import_hf(options.source, options.target, groups, show)
        else:
            size = int(options.max_file_gb * (1 << 30))
            memory = conversion.export_hf(
                options.source, options.target, groups, options.hf_files, size, show
            )
    say = print if place.rank == 0 else lambda text: None
    every: list[conversion.Memory] = [memory] * place.world_size
    dist.all_gather_object(every, memory)
    for rank, one in enumerate(every):
        say(f"rank {rank}: shard {one.shard / 2**20:.0f} MiB, peak memory rose by {one.rise / 2**20:.0f} MiB")
    if options.verify:
        pair = (options.target, options.source) if importing else (options.source, options.target)
        worst = conversion.verify(*pair, groups)
        say(f"verified: fp32 logits differ from transformers by at most {worst:.1e} of the largest logit")
    say(f"wrote {options.target}")
    dist.destroy_process_group()


@contextmanager
def progress_bar(visible: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function (phase, done, total) that draws one bar per phase."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:8}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not visible) as bar:
        tasks: dict[str, Any] = {}

        def show(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bar.add_task(phase)
            bar.update(tasks[phase], completed=done, total=total)

        yield show


if __name__ == "__main__":
    sys.exit(main())
