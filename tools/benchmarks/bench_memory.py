"""Time self-play's measures of likeness: the memory of a million questions, clusters, BLEU of all pairs.

The memory is a file of random unit vectors (6.1 GB for 10^6 x 1536, in the temporary folder, removed at the
end). ``cold`` drops the file from the page cache before the comparison. ``torch.mm`` is one product of the
queries with a part of the memory that is in main memory already, with its row maximum, scaled to the whole:
what a comparison would cost without file, blocks and bookkeeping. Both take turns in one run. On a busy
machine look at the CPU seconds, and give ``--threads 1``: waiting threads spin.

    python -m tools.benchmarks.bench_memory                       # everything
    python -m tools.benchmarks.bench_memory memory --entries 100000
    python -m tools.benchmarks.bench_memory clusters bleu
"""

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from megatron_srpo.platform import MemoryMeter
from megatron_srpo.selfplay.bleu import bleu_similarity
from megatron_srpo.selfplay.clusters import cluster_labels
from megatron_srpo.selfplay.memory_index import similarity, vector_sum

_PART = 50_000
_VOCABULARY = 400  # different words of the questions: about as many as a page of problems has
_MEMORY_HEAD = (
    "| queries | cold, s | warm, s (range) | warm, CPU s (range) | torch.mm, CPU s (range) | times torch.mm |"
)
_RULE = "|---|---|---|---|---|"
_BLEU_HEAD = "| questions | pairs | all at once, s | nltk, s | nltk / all at once |"


def main() -> None:
    """Run the named benchmarks and print their tables."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    print(f"load average {os.getloadavg()[0]:.1f} at the start, {arguments.threads} threads")
    benches = {"memory": bench_memory, "clusters": bench_clusters, "bleu": bench_bleu}
    for name in arguments.benches or benches:
        benches[name](arguments)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benches", nargs="*", choices=["memory", "clusters", "bleu", []], default=[])
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=1536)
    parser.add_argument("--queries", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--questions", type=int, nargs="+", default=[512, 8000], help="clusters, bleu")
    parser.add_argument("--words", type=int, default=60, help="bleu: words of a question")
    parser.add_argument("--nltk-pairs", type=int, default=1000, help="bleu: pairs timed with nltk itself")
    return parser.parse_args()


def seconds_of(work: Callable[[], object]) -> float:
    """Return the wall-clock seconds of a piece of work."""
    return clocks_of(work)[0]


def clocks_of(work: Callable[[], object]) -> tuple[float, float]:
    """Return the wall-clock and the CPU seconds of a piece of work."""
    start, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - cpu


# -------------------- memory


def bench_memory(arguments: argparse.Namespace) -> None:
    """Compare queries with a mapped memory, cold and warm, beside one plain product."""
    with random_memory(arguments.entries, arguments.dimension) as (path, memory_MD):
        print(f"\nmemory: {len(memory_MD)} x {arguments.dimension}, {path.stat().st_size / 1e9:.1f} GB")
        drop_from_cache(path)
        print(
            f"sum of all vectors, once per iteration, cold: {seconds_of(lambda: vector_sum(memory_MD)):.1f} s"
        )
        sum_D = vector_sum(memory_MD)
        print(f"{_MEMORY_HEAD}\n{_RULE}---|")
        for count in arguments.queries:
            print(memory_row(arguments, path, memory_MD, sum_D, count), flush=True)


def memory_row(
    arguments: argparse.Namespace,
    path: Path,
    memory_MD: NDArray[np.float32],
    sum_D: NDArray[np.float64],
    count: int,
) -> str:
    """Time one number of queries and return its line of the table."""
    dtype = torch_type(arguments.dtype)
    queries_ND = random_rows(np.random.default_rng(1), count, arguments.dimension)

    def ours() -> object:
        return similarity(queries_ND, memory_MD, sum_D, arguments.device, dtype)

    drop_from_cache(path)
    cold, warm, busy, plain = seconds_of(ours), [], [], []
    for _ in range(arguments.repeats):
        wall, cpu = clocks_of(ours)
        warm.append(wall)
        busy.append(cpu)
        plain.append(cpu_seconds_of_mm(queries_ND, memory_MD, arguments.device, dtype))
    ratio = statistics.median(busy) / statistics.median(plain)
    return f"| {count} | {cold:.1f} | {spread(warm)} | {spread(busy)} | {spread(plain)} | {ratio:.2f} |"


def torch_type(name: str) -> torch.dtype:
    """Return torch's type of that name."""
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def cpu_seconds_of_mm(
    queries_ND: NDArray[np.float32], memory_MD: NDArray[np.float32], device: str, dtype: torch.dtype
) -> float:
    """Return the CPU seconds of a plain product with a part of the memory, scaled to the whole."""
    part = min(_PART, len(memory_MD))
    part_DP = torch.from_numpy(np.array(memory_MD[:part])).to(device, dtype).T
    queries = torch.from_numpy(queries_ND).to(device, dtype)
    _, seconds = clocks_of(lambda: torch.mm(queries, part_DP).max(dim=1).values.cpu())
    return seconds * len(memory_MD) / part


def spread(seconds: list[float]) -> str:
    """Write median and range."""
    return f"{statistics.median(seconds):.1f} ({min(seconds):.1f}-{max(seconds):.1f})"


def random_rows(generator: np.random.Generator, count: int, dimension: int) -> NDArray[np.float32]:
    """Return random rows of unit length."""
    rows = generator.standard_normal((count, dimension), np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@contextmanager
def random_memory(entries: int, dimension: int) -> Iterator[tuple[Path, NDArray[np.float32]]]:
    """Write a file of random vectors, map it, and remove it at the end."""
    with tempfile.TemporaryDirectory(prefix="bench_memory_") as folder:
        path, generator = Path(folder) / "vectors.f32", np.random.default_rng(0)
        with path.open("wb") as file:
            for start in range(0, entries, 10_000):
                random_rows(generator, min(10_000, entries - start), dimension).tofile(file)
            file.flush()
            os.fsync(file.fileno())  # dirty pages could not be dropped
        yield path, np.memmap(path, "<f4", "c", shape=(entries, dimension))


def drop_from_cache(path: Path) -> None:
    """Have the system forget the file's pages that nobody maps at the moment."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# -------------------- clusters and BLEU


def bench_clusters(arguments: argparse.Namespace) -> None:
    """Cluster random skills."""
    print("\nclusters\n| questions | seconds | extra memory, MiB |\n|---|---|---|")
    for count in arguments.questions:
        rows = random_rows(np.random.default_rng(0), count, 64).astype(np.float64)
        distance_NN = 1 - rows @ rows.T
        np.fill_diagonal(distance_NN, 0.0)
        keys = [f"{number:06}" for number in range(count)]
        cluster_labels(distance_NN[:2, :2], 0.5, keys[:2])  # the library's import
        meter = MemoryMeter(give_back=True, on_device=False)
        seconds = seconds_of(partial(cluster_labels, distance_NN, 0.5, keys))
        rise = meter.rise()
        print(f"| {count} | {seconds:.2f} | {'unknown' if rise is None else rise >> 20} |", flush=True)


def bench_bleu(arguments: argparse.Namespace) -> None:
    """Time all pairs at once, and some of them by nltk, scaled to all."""
    print(f"\nBLEU, both directions\n{_BLEU_HEAD}\n{_RULE}")
    generator = random.Random(0)
    weights = [1 / (rank + 1) for rank in range(_VOCABULARY)]
    bleu_similarity(["the library's", "import"])
    one_by_one([])
    for count in arguments.questions:
        questions = [
            " ".join(map(str, generator.choices(range(_VOCABULARY), weights, k=arguments.words)))
            for _ in range(count)
        ]
        words = [question.split() for question in questions]
        pairs = [generator.sample(words, 2) for _ in range(arguments.nltk_pairs)]
        ours = seconds_of(partial(bleu_similarity, questions))
        some = seconds_of(partial(one_by_one, pairs))
        directed = count * (count - 1)
        theirs = some * directed / len(pairs)
        print(f"| {count} | {directed // 2} | {ours:.2f} | {theirs:.0f} | {theirs / ours:.0f} |", flush=True)


def one_by_one(pairs: list[list[list[str]]]) -> list[float]:
    """Return nltk's BLEU of pairs of word lists, in one direction."""
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    method1 = SmoothingFunction().method1
    return [sentence_bleu([one], other, smoothing_function=method1) for one, other in pairs]


if __name__ == "__main__":
    main()
