"""Times weight synchronisation with a real SGLang server: every transport beside two baselines, in one run.

    python -m tools.benchmarks.bench_weight_sync                     # a random Qwen3 of 100 M parameters
    python -m tools.benchmarks.bench_weight_sync --train-tp 2 --train-pp 1 --engine-tp 1 2 --output F.json

Baselines: (a) all tensors gathered on one rank, written as one safetensors file, read by the server; (b) one
SGLang call and one broadcast for each tensor. Every variant makes the same pause, begin, end, flush, version
and continue around its update, and is verified by checksums of what the server holds, once, before the timed
rounds. Variants take turns (A B C D E, A B C D E, ...): whatever else the machine does hits all alike.

GB/s is the model's size over the seconds of a push without pausing, flushing the cache and resuming. Its
share of the link compares it with the bare link: a copy into shared memory, a broadcast between two
processes, or writing and reading a file. Extra memory is that of a first push, with buffers made anew; the
transports' own probe of their link (32 or 64 MiB) is its floor. Left out: sampling, servers on other hosts,
several servers, quantised weights.
"""

import argparse
import importlib.metadata
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.table import Table

from megatron_srpo import platform
from megatron_srpo.config.sglang import SGLangConfig
from megatron_srpo.errors import UserError
from megatron_srpo.model.architecture import Qwen3Architecture, check_layout
from megatron_srpo.model.stages import PipelineStages
from megatron_srpo.rollout.sglang.fleet import Fleet
from megatron_srpo.weights.engine_layout import check_engine_layout
from megatron_srpo.weights.table import hf_shapes
from megatron_srpo.weights.transports import sender_group
from tools.benchmarks.lane import BenchmarkError

ROOT = Path(__file__).resolve().parents[2]
TOKENIZER = ROOT / "examples" / "models" / "qwen3-tiny"
MIB = 1 << 20
TIMEOUT_S = 300.0
PHASES = ("pause", "gather", "send", "load", "flush", "resume")
#: Phases in which no weights move.
_STANDING = ("pause", "flush", "resume")
_UNITS = {"K": 10**3, "M": 10**6, "B": 10**9}
_TAIL_LINES = 30
_POLL_S = 0.1
# Widths of the random model, from wide to narrow; heads are 64 wide, or 16 in the narrowest.
_WIDTHS = (4096, 2048, 1024, 768, 512, 256, 128, 64)
_FEWEST_LAYERS = 8

Say = Callable[[str], None]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--parameters", type=parameters, default=10**8, metavar="N", help="at least, e.g. 100M (%(default)s)")
    add("--vocabulary", type=positive, default=16384, metavar="N", help="token ids (%(default)s)")
    add(
        "--train-tp",
        type=positive,
        default=2,
        metavar="N",
        help="trainer's tensor parallel size (%(default)s)",
    )
    add("--train-pp", type=positive, default=1, metavar="N", help="pipeline parallel size (%(default)s)")
    add("--engine-tp", type=positive, nargs="+", default=[1, 2], metavar="N", help="one run for each (1 2)")
    add("--rounds", type=positive, default=5, metavar="N", help="timed pushes of each variant (%(default)s)")
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of both sides (%(default)s)")
    add("--bucket-mib", type=positive, default=64, metavar="MIB", help="most MiB of a bucket (%(default)s)")
    add("--folder", type=Path, help="where weights pass through the disk (default: the temporary folder)")
    add("--output", type=Path, help="write everything to this JSON file")
    return parser.parse_args(arguments)


def parameters(text: str) -> int:
    """Read a number of parameters such as 100M."""
    unit = _UNITS.get(text[-1:].upper(), 1)
    number = float(text[:-1] if text[-1:].upper() in _UNITS else text) * unit
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of parameters")
    return int(number)


def positive(text: str) -> int:
    """Read a number above 0."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def model_config(wanted: int, vocabulary: int, pipeline: int, dtype: str) -> dict[str, Any]:
    """Return ``config.json`` of a Qwen3 with ``wanted`` parameters or a few more, most of them in layers.

    Args:
        pipeline: the number of layers is a multiple of it.
    """
    width = next((w for w in _WIDTHS if _total(w, _FEWEST_LAYERS, vocabulary) <= wanted), _WIDTHS[-1])
    layers = max(1, -(-(wanted - _total(width, 0, vocabulary)) // _per_layer(width)))
    head_dim = 64 if width >= 256 else 16
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "dtype": dtype,
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": -(-layers // pipeline) * pipeline,
        "num_attention_heads": width // head_dim,
        "num_key_value_heads": 4,
        "head_dim": head_dim,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": True,
        "eos_token_id": 0,
    }


def _per_layer(width: int) -> int:
    head_dim = 64 if width >= 256 else 16
    matrices = 2 * width * width + 2 * width * 4 * head_dim + 3 * width * 3 * width
    return matrices + 2 * width + 2 * head_dim


def _total(width: int, layers: int, vocabulary: int) -> int:
    return vocabulary * width + width + layers * _per_layer(width)


def write_model(folder: Path, config: Mapping[str, Any]) -> Qwen3Architecture:
    """Write a Hugging Face folder of this config: random weights, and a tokenizer so that a server starts."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    arch = Qwen3Architecture.from_hf_config(dict(config))
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TOKENIZER / name, folder / name)
    dtype: torch.dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[config["dtype"]]
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: (0.02 * torch.randn(shape, generator=generator)).to(dtype)
        for name, shape in hf_shapes(arch).items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return arch


def model_size(arch: Qwen3Architecture) -> int:
    """Return the number of parameters."""
    from math import prod

    return sum(prod(shape) for shape in hf_shapes(arch).values())


def launch(module: str, ranks: int, spec: Path, result: Path) -> dict[str, Any]:
    """Run a module of this folder on ``ranks`` processes and return the JSON that it writes.

    Raises:
        BenchmarkError: it failed; with its own message or the end of its output.
    """
    log = spec.with_suffix(".log")
    with log.open("w", encoding="utf-8") as output:
        status = run_ranks([sys.executable, "-m", f"tools.benchmarks.{module}", str(spec)], ranks, output)
    if status or not result.is_file():
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:])
        raise BenchmarkError(f"{module} ended with status {status}; the end of its output:\n{tail}")
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    if "error" in found:
        raise BenchmarkError(found["error"])
    return found


def run_ranks(command: Sequence[str], ranks: int, output: IO[str]) -> int:
    """Run a command as all ranks of one group; return 0, or the first other status, which ends them all."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(sender_group.free_port("127.0.0.1"))}
    started: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(ranks):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
            environment = platform.child_environment({**address, **place})
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
            )
            started.append(process)
        while True:
            statuses = [process.poll() for process in started]
            failed = [status for status in statuses if status]
            if failed or None not in statuses:
                return failed[0] if failed else 0
            time.sleep(_POLL_S)
    finally:
        for process in started:
            process.kill()
            process.wait()


def measure_links(bucket_bytes: int, through: Path, scratch: Path) -> dict[str, float]:
    """Return the GB/s of the bare links."""
    import torch

    spec, result = scratch / "links.json", scratch / "links.result.json"
    content = {"bucket_bytes": bucket_bytes, "folder": str(through), "result": str(result)}
    spec.write_text(json.dumps(content), encoding="utf-8")
    ranks = 1 if torch.cuda.device_count() == 1 else 2
    return launch("weight_sync_links", ranks, spec, result)


def measure_pushes(
    arguments: argparse.Namespace, engine_tp: int, model: Path, through: Path, scratch: Path, say: Say
) -> dict[str, Any]:
    """Start a server and the trainer's ranks; return the records of all variants."""
    from tools.benchmarks.weight_sync_ranks import RanksSpec

    config = SGLangConfig(tensor_parallel=engine_tp)
    scratch.mkdir()
    path, result = scratch / "ranks.json", scratch / "ranks.result.json"
    with Fleet(config, model, arguments.dtype, scratch / "engine", on_progress=say) as fleet:
        (endpoint,) = fleet.endpoints
        RanksSpec(
            folder=str(model),
            scratch=str(through),
            result=str(result),
            url=endpoint.url,
            api_key=endpoint.api_key,
            engine_tp=engine_tp,
            tp=arguments.train_tp,
            pp=arguments.train_pp,
            dtype=arguments.dtype,
            bucket_bytes=arguments.bucket_mib * MIB,
            rounds=arguments.rounds,
            timeout_s=TIMEOUT_S,
        ).save(path)
        say(f"engine TP {engine_tp}: {arguments.rounds} timed rounds after two others")
        return launch("weight_sync_ranks", arguments.train_tp * arguments.train_pp, path, result)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median and range."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def summarise(record: Mapping[str, Any], model_bytes: int, link: float | None) -> dict[str, Any]:
    """Return what the rounds of one variant amount to.

    Args:
        record: of ``weight_sync_ranks``.
        link: GB/s of the bare link; None if it was not measured.
    """
    rounds = record["rounds"]
    phases = {name: spread([r["phases"].get(name, 0.0) for r in rounds]) for name in PHASES}
    # What is left of the whole: slices are also packed between the phases.
    moving = [r["seconds"] - sum(r["phases"][name] for name in _STANDING) for r in rounds]
    rate = model_bytes / 1e9 / statistics.median(moving)
    return {
        **record,
        "seconds": spread([r["seconds"] for r in rounds]),
        "phases": phases,
        "gigabytes_per_second": rate,
        "share_of_link": None if link is None else rate / link,
    }


def ratios(baseline: Mapping[str, Any], variant: Mapping[str, Any]) -> dict[str, float]:
    """Return, over the rounds, the baseline's seconds over the variant's: above 1, the variant is faster."""
    pairs = zip(baseline["rounds"], variant["rounds"], strict=True)
    return spread([theirs["seconds"] / ours["seconds"] for theirs, ours in pairs])


def summarise_all(
    records: Mapping[str, Mapping[str, Any]], model_bytes: int, links: Mapping[str, float]
) -> dict[str, Any]:
    """Return the summary of every variant, with ratios to both baselines."""
    from tools.benchmarks.weight_sync_variants import GATHER_DISK, LINKS, PER_TENSOR

    found = {}
    for name, record in records.items():
        summary = summarise(record, model_bytes, links.get(LINKS[name]))
        summary["ratio_to_full_gather"] = ratios(records[GATHER_DISK], record)
        summary["ratio_to_per_tensor"] = ratios(records[PER_TENSOR], record)
        found[name] = summary
    return found


def table(title: str, variants: Mapping[str, Mapping[str, Any]]) -> Table:
    """Lay the summaries out for a person."""
    shown = Table(title=title, title_justify="left")
    shown.add_column("variant")
    for heading in ("seconds", "/".join(PHASES), "GB/s", "of link", "MB between ranks", "MB sent"):
        shown.add_column(heading, justify="right")
    for heading in ("MB received", "extra MiB", "x faster than (a)", "than (b)", "verified"):
        shown.add_column(heading, justify="right")
    for name, item in variants.items():
        shown.add_row(name, *_cells(item))
    return shown


def _cells(item: Mapping[str, Any]) -> list[str]:
    extra, share = item["extra_memory"], item["share_of_link"]
    return [
        _range(item["seconds"], ".3f"),
        "/".join(f"{item['phases'][name]['median']:.2f}" for name in PHASES),
        f"{item['gigabytes_per_second']:.2f}",
        "?" if share is None else f"{share:.0%}",
        *(f"{item[key] / 1e6:.0f}" for key in ("between_ranks", "sent", "received")),
        "?" if extra is None else f"{extra / MIB:.0f}",
        _range(item["ratio_to_full_gather"], ".2f"),
        _range(item["ratio_to_per_tensor"], ".2f"),
        "yes" if item["verified"] else "no",
    ]


def _range(found: Mapping[str, float], form: str) -> str:
    return f"{found['median']:{form}} ({found['low']:{form}}-{found['high']:{form}})"


def versions() -> dict[str, str]:
    """Return the versions that the numbers depend on."""
    return {name: importlib.metadata.version(name) for name in ("torch", "sglang", "megatron-core")}


def check(arguments: argparse.Namespace, config: Mapping[str, Any]) -> Qwen3Architecture:
    """Refuse what cannot work before anything starts."""
    smallest = json.loads((TOKENIZER / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    if arguments.vocabulary < smallest:
        raise BenchmarkError(f"--vocabulary {arguments.vocabulary} is below the tokenizer's {smallest} ids")
    arch = Qwen3Architecture.from_hf_config(dict(config))
    check_layout(arch, arguments.train_tp, PipelineStages(arguments.train_pp))
    for engine_tp in arguments.engine_tp:
        check_engine_layout(arch, engine_tp)
    return arch


def compare(arguments: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Run everything; print a table for each engine layout and return what ``--output`` holds."""
    config = model_config(arguments.parameters, arguments.vocabulary, arguments.train_pp, arguments.dtype)
    arch = check(arguments, config)
    item = 2 if arguments.dtype == "bfloat16" else 4
    size = model_size(arch)
    settings = {
        key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()
    }
    found: dict[str, Any] = {
        "versions": versions(),
        "settings": settings,
        "model": {"parameters": size, "bytes": size * item, "config": config},
        "load_average": os.getloadavg()[0],
        "layouts": [],
    }
    with tempfile.TemporaryDirectory(prefix="weight-sync-") as name:
        scratch = Path(name)
        through = arguments.folder or scratch / "weights"
        bucket = min(arguments.bucket_mib * MIB, size * item)
        found["links"] = measure_links(bucket, through, scratch)
        write_model(scratch / "model", config)
        for engine_tp in arguments.engine_tp:
            folder = scratch / f"engine-tp-{engine_tp}"
            records = measure_pushes(arguments, engine_tp, scratch / "model", through, folder, say)
            variants = summarise_all(records["variants"], size * item, found["links"])
            layout = {"engine_tp": engine_tp, "memory": records["memory"], "variants": variants}
            found["layouts"].append(layout)
            show(found, layout)
            save(found, arguments.output)
    return found


def show(found: Mapping[str, Any], layout: Mapping[str, Any]) -> None:
    """Print one engine layout."""
    settings = found["settings"]
    title = (
        f"{found['model']['parameters'] / 1e6:.1f} M parameters, {settings['dtype']}, trainer TP "
        f"{settings['train_tp']} x PP {settings['train_pp']}, engine TP {layout['engine_tp']}, "
        f"{settings['rounds']} rounds: median (range)"
    )
    # A file or pipe has no width; the table must not be cut to 80 columns there.
    console = Console() if sys.stdout.isatty() else Console(width=220)
    console.print(table(title, layout["variants"]))
    links = ", ".join(f"{name} {rate:.2f} GB/s" for name, rate in found["links"].items())
    console.print(
        f"(a) full gather, disk; (b) per tensor. Bare links: {links}. Memory: {layout['memory']}.\n"
    )


def save(found: Mapping[str, Any], output: Path | None) -> None:
    """Write what is known so far."""
    if output is not None:
        output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    try:
        compare(parse(arguments), lambda text: print(text, file=sys.stderr, flush=True))
    except UserError as error:
        print(f"bench_weight_sync: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
