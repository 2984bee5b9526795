"""Print what weight synchronisation would move for a model and two layouts, from config.json alone.

    python tools/show_weight_plan.py MODEL --tensor-parallel 2 --engine-tensor-parallel 2 --full

No weights are read and no process is started. Left out: data parallel replicas, which plan alike.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

from megatron_srpo.errors import UserError
from megatron_srpo.model.architecture import Qwen3Architecture, check_layout
from megatron_srpo.model.stages import PipelineStages
from megatron_srpo.weights.engine_layout import check_engine_layout
from megatron_srpo.weights.plan import (
    Plan,
    Training,
    count,
    format_counts,
    format_plan,
    plan_shards,
    plan_whole,
)

DESCRIPTION = """\
Show which bytes of which trainer rank go to an SGLang server at every weight synchronisation. MODEL is a
folder with a config.json; its weights are not needed.
"""

EXAMPLES = """\
examples:
  # how much travels, over which links, in buckets of which size
  python tools/show_weight_plan.py models/Qwen3-4B --tensor-parallel 2 --engine-tensor-parallel 2

  # every slice of every tensor, for the transport that broadcasts
  python tools/show_weight_plan.py models/Qwen3-4B --pipeline-parallel 2 --transport collective --full

transports:
  tensor      each engine rank is sent exactly its own parameters (same host)
  collective  whole tensors from one rank, broadcast to all engine ranks
  disk        whole tensors, written by all trainer ranks, read by all engine ranks
"""

ELEMENT_SIZES = {"bfloat16": 2, "float32": 4}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = parse(arguments)

    try:
        for line in describe(options):
            print(line)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=DESCRIPTION, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="folder in Hugging Face format")
    sizes = (
        ("--tensor-parallel", "trainer ranks per layer"),
        ("--pipeline-parallel", "trainer stages"),
        ("--expert-parallel", "trainer ranks that share a layer's experts"),
        ("--engine-tensor-parallel", "ranks of a server"),
    )
    for name, meaning in sizes:
        add(name, type=positive, default=1, metavar="N", help=f"{meaning} (default 1)")
    add("--transport", choices=("tensor", "collective", "disk"), default="tensor", help="(default tensor)")
    add("--bucket-mib", type=positive, default=512, metavar="MIB", help="most MiB of a bucket (default 512)")
    add("--dtype", choices=tuple(ELEMENT_SIZES), default="bfloat16", help="of the engine (default bfloat16)")
    add("--full", action="store_true", help="print every move")
    return parser.parse_args(arguments)


def positive(text: str) -> int:
    """Read a number above 0."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def describe(options: argparse.Namespace) -> list[str]:
    """Return the lines to print.

    Raises:
        ModelError: the folder has no usable config.json.
        ConfigError: the model cannot be split this way.
    """

    arch = Qwen3Architecture.from_hf_folder(options.model)
    tp, pp, engine_tp = options.tensor_parallel, options.pipeline_parallel, options.engine_tensor_parallel
    ep = options.expert_parallel
    experts = f" x EP {ep}" if ep > 1 else ""
    stages = PipelineStages(pp)
    check_layout(arch, tp, stages, ep)
    check_engine_layout(arch, engine_tp)
    training = Training(tp, stages, arch.padded_vocab_size(tp) // tp, ep)
    size = ELEMENT_SIZES[options.dtype]
    plan = make_plan(options.transport, arch, training, engine_tp, options.bucket_mib * 2**20 // size)
    lines = [
        f"trainer TP {tp} x PP {pp}{experts}, engine TP {engine_tp}, transport {options.transport}, "
        f"{options.dtype}",
        f"{sum(1 for _ in plan.buckets)} buckets in {len(plan.rounds)} rounds and {plan.lanes} lanes",
        *format_counts(count(arch, plan), size).splitlines(),
        *assembled(plan, size),
    ]
    return [*lines, "", *format_plan(plan).splitlines()] if options.full else lines


def make_plan(
    transport: str, arch: Qwen3Architecture, training: Training, engine_tp: int, limit: int
) -> Plan:
    """Return the plan that a transport carries out.

    Args:
        limit: most elements of a bucket.
    """

    if transport == "tensor":
        return plan_shards(arch, training, engine_tp, limit)
    assemblers = [0] if transport == "collective" else range(training.ranks)
    return plan_whole(arch, training, assemblers, limit)


def assembled(plan: Plan, element_size: int) -> list[str]:
    """Say what each trainer rank hands to the engine, and the memory that its buckets take."""
    handed: Counter[int] = Counter()
    largest: dict[tuple[int, int], int] = {}
    for bucket in plan.buckets:
        handed[bucket.assembler] += bucket.size
        lane = bucket.assembler, bucket.lane
        largest[lane] = max(largest.get(lane, 0), bucket.size)
    mib = element_size / 2**20
    return [
        f"rank {rank} hands to the engine: {handed[rank] * mib:.1f} MiB, through buckets of "
        f"{2 * mib * sum(size for (owner, _), size in largest.items() if owner == rank):.1f} MiB"
        for rank in sorted(handed)
    ]


if __name__ == "__main__":
    sys.exit(main())
