"""Times fused linear losses, forward and backward, with their memory: ours beside others, in one run.

    python -m tools.benchmarks.bench_fused_linear                            # CPU or GPU, whichever is here
    python -m tools.benchmarks.bench_fused_linear --tokens 256 --vocabulary 20000 --output F.json
    python -m tools.benchmarks.bench_fused_linear --published                # CUDA: Liger's published shape

Operations and variants: see :mod:`tools.benchmarks.fused_linear_variants`. First every variant's loss and
gradients are held against float64 on a few tokens; then variants take turns (A B C, A B C, ...), so that
whatever else the machine does hits all alike, and after each pass the results over all tokens are compared
with each other. A variant that disagrees gets no numbers, and the exit status is 1.

The floor is the time of the matrix products alone (three for log-prob, four for jsd) at the best rates
measured for these shapes during the rounds. Left out: more than one rank. A round of everything takes some
six minutes on one CPU core at the default shape; --minutes cuts rounds, --variants chooses.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from megatron_srpo import platform
from megatron_srpo.errors import UserError
from tools.benchmarks.fused_linear_lanes import Commands, Lane, LaneFailed, open_lane
from tools.benchmarks.fused_linear_measure import (
    GEMMS,
    TOLERANCE,
    Machine,
    Outcome,
    Stand,
    Step,
    differences,
    disagreement,
    floor_seconds,
    reference,
)
from tools.benchmarks.fused_linear_variants import (
    DEFAULT_VARIANTS,
    JSD,
    VARIANTS,
    WARMED,
    Builder,
    Inputs,
    Setting,
    Shape,
    make_inputs,
)
from tools.benchmarks.lane import BenchmarkError

MIB = 1 << 20
#: What an option is where it is not given, by device.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "cpu": {"tokens": 2048, "hidden": 1024, "dtype": "float32", "rounds": 3, "minutes": 12.0},
    "cuda": {"tokens": 8192, "hidden": 4096, "dtype": "bfloat16", "rounds": 10, "minutes": 8.0},
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PLAIN_NAME = "plain"
#: Vocabulary of Liger-Kernel's published row (8192 tokens, hidden size 4096, bf16, one H100), and the row.
PUBLISHED_VOCABULARY = 128256
PUBLISHED = {"liger": {"ms": 182.6, "GB": 8.7}, "plain": {"ms": 195.3, "GB": 56.4}}
#: Ratios to plain PyTorch in the table. Seconds of the processor say nothing of a GPU.
RATIOS = {
    "cpu": {"time_ratio": "x plain's time", "processor_ratio": "x plain's processor seconds"},
    "cuda": {"time_ratio": "x plain's time"},
}
PACKAGES = ("torch", "triton", "liger-kernel", "trl")

Say = Callable[[str], None]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line and fill in the device's defaults."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cuda" if platform.has_cuda() else "cpu")
    add("--operations", nargs="+", choices=tuple(VARIANTS), default=list(VARIANTS))
    names = tuple(dict.fromkeys(name for variants in VARIANTS.values() for name in variants))
    add("--variants", nargs="+", choices=names, help=f"by default {DEFAULT_VARIANTS}")
    add("--tokens", type=positive, metavar="N", help="CPU 2048, CUDA 8192")
    add("--hidden", type=positive, metavar="N", help="CPU 1024, CUDA 4096")
    add("--vocabulary", type=positive, default=151936, metavar="N", help="(%(default)s)")
    add("--dtype", choices=tuple(DTYPES), help="of hidden states and heads: CPU float32, CUDA bfloat16")
    add("--chunk", type=positive, metavar="N", help="tokens per chunk of ours (default: its own choice)")
    add("--rounds", type=positive, metavar="N", help="at most: CPU 3, CUDA 10")
    add("--minutes", type=float, help="start no round that would end later: CPU 12, CUDA 8")
    add("--threads", type=positive, default=1, metavar="N", help="of a CPU (%(default)s)")
    add("--published", action="store_true", help=f"CUDA: jsd at vocabulary {PUBLISHED_VOCABULARY} too")
    add("--output", type=Path, help="write everything to this JSON file")
    found = parser.parse_args(arguments)
    for name, value in DEFAULTS[found.device].items():
        if vars(found)[name] is None:
            setattr(found, name, value)
    found.variants = found.variants or list(DEFAULT_VARIANTS[found.device])
    return found


def positive(text: str) -> int:
    """Read a number above 0."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def check(arguments: argparse.Namespace) -> None:
    """Refuse what cannot work."""
    if arguments.device == "cuda" and not platform.has_cuda():
        raise BenchmarkError("--device cuda: PyTorch finds no CUDA device here; use --device cpu")
    if arguments.published and arguments.device != "cuda":
        raise BenchmarkError("--published: the published row is of a GPU; use --device cuda")
    for operation in arguments.operations:
        if not set(arguments.variants) & set(VARIANTS[operation]):
            names = ", ".join(VARIANTS[operation])
            raise BenchmarkError(f"--variants: none of {operation}; it has {names}")


def cases(arguments: argparse.Namespace) -> list[tuple[Shape, tuple[str, ...]]]:
    """Return what is to be measured: shapes, and the operations at each."""

    def shape(vocabulary: int) -> Shape:
        dtype = DTYPES[arguments.dtype]
        return Shape(arguments.tokens, arguments.hidden, vocabulary, dtype, arguments.device)

    found = [(shape(arguments.vocabulary), tuple(arguments.operations))]
    if arguments.published:
        found.append((shape(PUBLISHED_VOCABULARY), (JSD,)))
    return found


@dataclass
class Row:
    """What is known of one variant.

    Attributes:
        problem: why it has no numbers; None if it has.
        exact: differences from float64 on the first tokens.
        agreement: largest differences, over the rounds, from the variant that all are held against.
        steps: one of each round.
    """

    name: str
    lane: Lane
    problem: str | None = None
    exact: dict[str, float] = field(default_factory=dict)
    agreement: dict[str, float] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)

    def refuse(self, found: Mapping[str, float], tolerance: float, against: str) -> None:
        """Take the numbers away if they disagree."""
        worst = disagreement(found, tolerance)
        if worst is not None:
            self.problem = f"refused: {worst} against {against}"
            self.steps.clear()


@contextmanager
def opened(
    operation: str, inputs: Inputs, arguments: argparse.Namespace
) -> Iterator[tuple[dict[str, Row], Lane]]:
    """Open a lane for every variant and one for the machine's own rates."""
    setting = Setting(arguments.device, arguments.chunk)
    open_one = partial(open_lane, device=arguments.device, threads=arguments.threads)
    rows: dict[str, Row] = {}
    machine = open_one(partial(_machine, inputs, arguments.device))
    try:
        for name, build in VARIANTS[operation].items():
            if name in arguments.variants:
                rows[name] = Row(name, open_one(partial(_stand, name, build, setting, inputs)))
        yield rows, machine
    finally:
        for lane in (machine, *(row.lane for row in rows.values())):
            lane.close()


def _stand(name: str, build: Builder, setting: Setting, inputs: Inputs) -> Commands:
    stand = Stand(build, setting, inputs, warmed=name in WARMED)
    return {"check": stand.check, "step": stand.step}


def _machine(inputs: Inputs, device: str) -> Commands:
    # Made anew each time: between its turns it keeps no memory that a large variant may need.
    return {
        "rates": lambda: Machine(inputs, device).rates(),
        "copy": lambda: Machine(inputs, device).copy_rate(),
    }


def expected(operation: str, inputs: Inputs, arguments: argparse.Namespace) -> Outcome:
    """Return float64's outcome, computed where its memory does not stay."""
    lane = open_lane(
        lambda: {"reference": partial(reference, operation, inputs)}, arguments.device, arguments.threads
    )
    try:
        found = lane.call("reference")
        assert isinstance(found, Outcome)
        return found
    finally:
        lane.close()


def check_rows(rows: Mapping[str, Row], exact: Outcome, tolerance: float, say: Say) -> None:
    """Hold every variant against float64."""
    for row in rows.values():
        try:
            row.exact = differences(row.lane.call("check"), exact)
        except LaneFailed as error:
            row.problem = str(error)
        else:
            row.refuse(row.exact, tolerance, "float64")
        say(f"  {row.name}: {row.problem or 'agrees with float64'}")


def run_rounds(
    rows: Mapping[str, Row], machine: Lane, rounds: int, seconds: float, tolerance: float, say: Say
) -> list[dict[str, float]]:
    """Let variants and matrix products take turns; return the rates of the products, round by round.

    Args:
        seconds: no round but the first is started if it would end later than this.
    """
    begun = time.monotonic()
    rates: list[dict[str, float]] = []
    for number in range(rounds):
        started = time.monotonic()
        rates.append(machine.call("rates"))
        for row in rows.values():
            _take_turn(row, tolerance)
        _compare(rows, tolerance)
        took = time.monotonic() - started
        say(f"  round {number + 1} of {rounds}: {took:.1f} s")
        if time.monotonic() - begun + took > seconds and number + 1 < rounds:
            say(f"  {rounds - number - 1} rounds left out: no time (--minutes)")
            break
    return rates


def _take_turn(row: Row, tolerance: float) -> None:
    if row.problem is None:
        try:
            row.steps.append(row.lane.call("step"))
        except LaneFailed as error:
            row.problem = str(error)
            row.steps.clear()


def _compare(rows: Mapping[str, Row], tolerance: float) -> None:
    """Hold the last pass of every variant against the first one's; both may be off, hence twice."""
    good = [row for row in rows.values() if row.problem is None]
    for row in good[1:]:
        found = differences(row.steps[-1].outcome, good[0].steps[-1].outcome)
        row.agreement = {key: max(value, row.agreement.get(key, 0.0)) for key, value in found.items()}
        row.refuse(found, 2 * tolerance, good[0].name)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median and range."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def summarise(row: Row, plain: Row | None, floor: float) -> dict[str, Any]:
    """Return what the rounds of one variant amount to; ratios are to plain PyTorch in the same round."""
    summary: dict[str, Any] = {"problem": row.problem, "exact": row.exact, "agreement": row.agreement}
    if row.problem is not None or not row.steps:
        return summary
    seconds = [step.seconds for step in row.steps]
    summary |= {
        "rounds": seconds,
        "seconds": spread(seconds),
        "processor_seconds": spread([step.processor for step in row.steps]),
        "share_of_floor": floor / statistics.median(seconds),
        "extra_bytes": _largest(row),
        "time_ratio": None,
        "processor_ratio": None,
        "memory_ratio": None,
    }
    if plain is None or not plain.steps:
        return summary
    pairs = list(zip(row.steps, plain.steps, strict=True))
    summary["time_ratio"] = spread([mine.seconds / base.seconds for mine, base in pairs])
    summary["processor_ratio"] = spread([mine.processor / base.processor for mine, base in pairs])
    memory, most = _largest(row), _largest(plain)
    summary["memory_ratio"] = memory / most if memory is not None and most else None
    return summary


def _largest(row: Row) -> int | None:
    known = [step.extra_bytes for step in row.steps if step.extra_bytes is not None]
    return max(known) if known else None


def measure(
    operation: str, shape: Shape, inputs: Inputs, arguments: argparse.Namespace, end: float, say: Say
) -> dict[str, Any]:
    """Return the record of one operation at one shape: checks first, then rounds until ``end``."""
    tolerance = TOLERANCE[shape.dtype]
    say(f"{operation}, vocabulary {shape.vocabulary}: float64 on the first tokens")
    exact = expected(operation, inputs, arguments)
    with opened(operation, inputs, arguments) as (rows, machine):
        check_rows(rows, exact, tolerance, say)
        copy_rate = machine.call("copy")
        rates = run_rounds(rows, machine, arguments.rounds, end - time.monotonic(), tolerance, say)
    best = {name: max(rate[name] for rate in rates) for name in GEMMS}
    floor = floor_seconds(operation, shape.tokens, shape.hidden, shape.vocabulary, best)
    plain = rows.get(PLAIN_NAME)
    return {
        "operation": operation,
        "shape": {**vars(shape), "dtype": arguments.dtype},
        "rounds": len(rates),
        "gemm_flops_per_second": best,
        "copy_bytes_per_second": copy_rate,
        "floor_seconds": floor,
        "variants": {name: summarise(row, plain, floor) for name, row in rows.items()},
    }


def compare(arguments: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Run everything; print a table for each operation and return what ``--output`` holds."""
    check(arguments)
    torch.set_num_threads(1)  # forked lanes need a parent without a pool of threads; they set their own
    settings = {
        key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()
    }
    found: dict[str, Any] = {
        "versions": versions(),
        "machine": machine_name(arguments.device),
        "settings": settings,
        "load_average": os.getloadavg()[0],
        "published": {"vocabulary": PUBLISHED_VOCABULARY, **PUBLISHED} if arguments.published else None,
        "operations": [],
    }
    todo = [(shape, operation) for shape, operations in cases(arguments) for operation in operations]
    finish = time.monotonic() + 60.0 * arguments.minutes
    inputs: Inputs | None = None
    for index, (shape, operation) in enumerate(todo):
        if inputs is None or len(inputs.weight_VH) != shape.vocabulary:
            inputs = None  # before the next ones are made
            inputs = make_inputs(shape)
        now = time.monotonic()
        end = now + (finish - now) / (len(todo) - index)
        record = measure(operation, shape, inputs, arguments, end, say)
        found["operations"].append(record)
        show(record)
        save(found, arguments.output)
    return found


def versions() -> dict[str, str | None]:
    """Return the versions that the numbers depend on; None for what is not installed."""
    return {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine_name(device: str) -> str:
    """Describe what computes."""
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        return f"{properties.name}, {properties.total_memory / 1e9:.0f} GB"
    return f"CPU, {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores"


def table(record: Mapping[str, Any]) -> Table:
    """Lay a record out for a person."""
    shape = record["shape"]
    title = (
        f"{record['operation']}, forward + backward: {shape['tokens']} tokens, "
        f"hidden size {shape['hidden']}, vocabulary {shape['vocabulary']}, {shape['dtype']}, "
        f"{shape['device']}; {record['rounds']} rounds: median (range)"
    )
    shown = Table(title=title, title_justify="left")
    shown.add_column("variant")
    ratios = RATIOS[shape["device"]]
    headings = ("ms", *ratios.values(), "x plain's memory", "extra MB", "of floor")
    for heading in (*headings, "off float64: loss/hidden/head"):
        shown.add_column(heading, justify="right")
    shown.add_column("note", overflow="fold")
    for name, item in record["variants"].items():
        cells = _cells(item, tuple(ratios)) if "seconds" in item else [""] * (len(headings) + 1)
        shown.add_row(name, *cells, item["problem"] or "")
    return shown


def _cells(item: Mapping[str, Any], ratios: Sequence[str]) -> list[str]:
    milliseconds = {key: 1e3 * value for key, value in item["seconds"].items()}
    extra, memory = item["extra_bytes"], item["memory_ratio"]
    return [
        _range(milliseconds, ".1f"),
        *("?" if item[key] is None else _range(item[key], ".3f") for key in ratios),
        "?" if memory is None else f"{memory:.3f}",
        "?" if extra is None else f"{extra / 1e6:.0f}",
        f"{item['share_of_floor']:.0%}",
        "/".join(f"{value:.0e}" for value in item["exact"].values()),
    ]


def _range(found: Mapping[str, float], form: str) -> str:
    return f"{found['median']:{form}} ({found['low']:{form}}-{found['high']:{form}})"


def show(record: Mapping[str, Any]) -> None:
    """Print one operation."""
    # A file or pipe has no width; the table must not be cut to 80 columns there.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(table(record))
    rates = ", ".join(f"{name} {rate / 1e12:.3g}" for name, rate in record["gemm_flops_per_second"].items())
    console.print(
        f"Floor {1e3 * record['floor_seconds']:.1f} ms. TFLOP/s of the products: {rates}. "
        f"Large copy: {record['copy_bytes_per_second'] / 1e9:.3g} GB/s.\n"
    )
    if (record["operation"], record["shape"]["vocabulary"]) == (JSD, PUBLISHED_VOCABULARY):
        told = ", ".join(f"{name} {row['ms']} ms and {row['GB']} GB" for name, row in PUBLISHED.items())
        console.print(f"Published by Liger-Kernel (8192 tokens, hidden size 4096, bf16, one H100): {told}.\n")


def save(found: Mapping[str, Any], output: Path | None) -> None:
    """Write what is known so far."""
    if output is not None:
        output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def refused(found: Mapping[str, Any]) -> list[str]:
    """Return, for a person, every variant whose numbers disagree, and ours if it failed in any way."""
    return [
        f"{record['operation']}, {name}: {item['problem']}"
        for record in found["operations"]
        for name, item in record["variants"].items()
        if item["problem"] and (item["problem"].startswith("refused") or name.startswith("ours"))
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    try:
        found = compare(parse(arguments), lambda text: print(text, file=sys.stderr, flush=True))
    except UserError as error:
        print(f"bench_fused_linear: error: {error}", file=sys.stderr)
        return 2
    for line in refused(found):
        print(f"bench_fused_linear: {line}", file=sys.stderr)
    return 1 if refused(found) else 0


if __name__ == "__main__":
    sys.exit(main())
