"""What two self-plays must have in common when they are the same one."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_srpo.report.metrics import deterministic, read_metrics
from megatron_srpo.report.records import read_records

#: Files that are compared as they are.
_FILES = ("questions.jsonl", "challenger_prompts.jsonl", "solver_prompts.jsonl")
_MEMORY = ("entries.jsonl", "vectors.f32")


def fingerprint(folder: Path) -> dict[str, str]:
    """Return a digest of everything that a self-play has made, but for seconds and paths, by its name."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in _contents(folder)}


def differences(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """Name what differs between two fingerprints, or is missing from one of them."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def kept_twice(folder: Path) -> int:
    """Count what was computed and kept more than once: questions judged, codes and vectors of skills."""
    counts: Counter[tuple[str, str]] = Counter()
    for path in folder.glob("iteration_*/kept/votes.jsonl"):
        counts.update(
            (str(path), item["question"]) for record in read_records(path) for item in record["items"]
        )
    for path in (folder / "skills").glob("*.jsonl"):
        counts.update((path.name, _key(record)) for record in read_records(path))
    return sum(count - 1 for count in counts.values())


def _key(record: Mapping[str, Any]) -> str:
    return json.dumps({name: value for name, value in record.items() if name != "step"}, sort_keys=True)


def _contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    for iteration in sorted(folder.glob("iteration_*")):
        for name in _FILES:
            yield f"{iteration.name}/{name}", _bytes(iteration / name)
        for role in ("challenger", "solver"):
            run = iteration / role
            yield f"{iteration.name}/{role}/weights", _bytes(run / "model" / "model.safetensors")
            rows = [deterministic(row) for row in read_metrics(run / "metrics.jsonl")]
            yield f"{iteration.name}/{role}/metrics", json.dumps(rows, sort_keys=True).encode()
    for name in _MEMORY:
        yield f"memory/{name}", _bytes(folder / "memory" / name)
    rows = [
        {name: value for name, value in record.items() if not name.startswith("time/")}
        for record in read_records(folder / "iterations.jsonl")
    ]
    yield "iterations", json.dumps(rows, sort_keys=True).encode()


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b"missing"
