"""Measure held-out accuracy (avg@k, pass@k, maj@k) of a Hugging Face folder on the config's evaluation sets.

The config is that of a training run; model.path may name any Qwen3 folder, such as the exported model
of a finished run: megatron-srpo eval --config examples/quickstart.yaml model.path=runs/quickstart/model
"""

import argparse
from pathlib import Path

from megatron_srpo import platform
from megatron_srpo.commands.common import add_config_arguments, run_config
from megatron_srpo.config.run import RunConfig
from megatron_srpo.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``megatron-srpo eval``."""
    add_config_arguments(parser)
    parser.add_argument("--out", metavar="FOLDER", help="also save all responses as JSON in this folder")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate in this process and print a table."""
    config = run_config(arguments)
    if not config.data.eval:
        raise ConfigError("data.eval is empty; name at least one evaluation set")
    metrics = _evaluate(config, Path(arguments.out) if arguments.out else None)
    _print_table(metrics)
    return 0


def _evaluate(config: RunConfig, out: Path | None) -> dict[str, float]:
    from transformers import AutoTokenizer

    from megatron_srpo.data.chat import decode_response, limit_prompts, render_prompt
    from megatron_srpo.data.sources import load_source
    from megatron_srpo.evaluation.evaluate import evaluate
    from megatron_srpo.model.architecture import Qwen3Architecture
    from megatron_srpo.rewards.pool import RewardPool
    from megatron_srpo.session.engine import engine_alone

    arch = Qwen3Architecture.from_hf_folder(config.model.path)
    tokenizer = AutoTokenizer.from_pretrained(config.model.path)
    data = config.data
    prompts = [p for source in data.eval for p in load_source(source, data.on_bad_row)[0]]
    limit = (data.thinking, data.max_prompt_tokens, data.overlong_prompts)
    prompts, _ = limit_prompts(prompts, tokenizer, *limit)
    with RewardPool(config.reward) as rewards, engine_alone(config, arch, tokenizer, print) as engine:
        rewards.start()
        result = evaluate(
            prompts,
            config.evaluation,
            generate=engine.generate,
            render=lambda prompt: render_prompt(tokenizer, prompt.messages, data.thinking),
            decode=lambda tokens: decode_response(tokenizer, tokens),
            score=lambda asked, texts: rewards.score(list(zip(asked, texts, strict=True))),
            max_response_tokens=config.rollout.max_response_tokens,
            run_seed=config.seed,
        )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        print(f"responses: {result.save(out)}")
    return result.metrics


def _print_table(metrics: dict[str, float]) -> None:
    from rich.console import Console
    from rich.table import Table

    names = sorted({name.split("/")[1] for name in metrics if name.count("/") == 2})
    table = Table("set", "avg@k", "+-", "pass@k", "maj@k", "tokens", "truncated")
    columns = ("accuracy", "accuracy_se", "pass_at_k", "maj_at_k", "response_length_mean", "truncated_share")
    for name in [*(f"{name}/" for name in names), ""]:
        values = [metrics.get(f"eval/{name}{column}") for column in columns]
        shown = ["" if value is None else f"{value:.3f}" for value in values]
        table.add_row(name.rstrip("/") or "mean", *shown)
    Console(force_terminal=platform.console_is_terminal()).print(table)
