"""Trains the small Qwen3 from scratch with plain PyTorch: next-token loss on response tokens."""

import itertools
import math
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from rich.progress import track
from torch.nn import functional
from transformers import Qwen3Config, Qwen3ForCausalLM

from tools.tiny_qwen3.corpus import IGNORED, KINDS, Example, Problem, example
from tools.tiny_qwen3.families import WARM_UP_SEED

VOCABULARY_MULTIPLE = (
    64  # rows of the embedding; the spare ones are never used, as in the published Qwen3 models
)


@dataclass(frozen=True)
class Schedule:
    """How long the model is trained, and with which steps."""

    steps: int = 600
    batch: int = 64
    chunks: int = 4  # a batch is sorted by length and run in so many parts: little padding
    learning_rate: float = 3e-3
    final_share: float = 0.3  # of the learning rate, at the last step (cosine)
    warm_up_steps: int = 40
    weight_decay: float = 0.01
    gradient_clip: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class WarmUp(Schedule):
    """How long and on what the model is trained. Stopped early on purpose: see the model card."""

    opening: float = 0.4  # share of the steps in which the model mostly learns to copy
    opening_kinds: tuple[float, ...] = (0.45, 0.3, 0.25)  # shares of the `KINDS` of example
    kinds: tuple[float, ...] = (0.45, 0.35, 0.2)  # the same, after the opening
    items: int = 12000  # asked of every family's dataset; repeated questions count once
    data_seed: int = WARM_UP_SEED


#: Heads, groups and widths divide by 4, layers by 2, for TP and PP.
SIZES = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
}


def build_model(tokenizer: Any, seed: int, sizes: Mapping[str, int] = SIZES) -> Qwen3ForCausalLM:
    """A Qwen3 with random weights; `sizes` by their names in config.json."""
    rows = math.ceil(len(tokenizer) / VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(
        Qwen3Config(
            **sizes,
            vocab_size=rows,
            max_position_embeddings=1024,
            rope_theta=10000.0,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def examples(tokenizer: Any, pools: list[list[Problem]], settings: WarmUp) -> Iterator[Example]:
    """An endless stream: a random family, a random problem of it, a random kind."""
    rng = random.Random(settings.seed)
    for index in itertools.count():
        opening = index < settings.opening * settings.steps * settings.batch
        shares = settings.opening_kinds if opening else settings.kinds
        kind, pool = rng.choices(KINDS, weights=shares)[0], rng.choice(pools)
        yield example(tokenizer, rng.choice(pool), kind, rng)


def collate(batch: list[Example], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and labels [B, T], padded on the right: causal attention needs no mask then."""
    length = max(len(e.tokens) for e in batch)
    tokens = torch.tensor([e.tokens + [pad] * (length - len(e.tokens)) for e in batch])
    labels = torch.tensor([e.labels + [IGNORED] * (length - len(e.labels)) for e in batch])
    return tokens, labels


def response_loss(model: Any, tokens_BT: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """Summed cross-entropy of the labelled positions; the head runs on these only."""
    hidden = model.model(input_ids=tokens_BT).last_hidden_state[:, :-1]
    targets = labels_BT[:, 1:]
    chosen = targets != IGNORED
    return functional.cross_entropy(model.lm_head(hidden[chosen]), targets[chosen], reduction="sum")


def learning_rate_share(step: int, settings: Schedule) -> float:
    """Linear warm-up, then cosine from 1 to `final_share`; `step` counts from 0."""
    if step < settings.warm_up_steps:
        return (step + 1) / settings.warm_up_steps
    done = (step - settings.warm_up_steps) / max(1, settings.steps - settings.warm_up_steps)
    return settings.final_share + (1 - settings.final_share) * (1 + math.cos(math.pi * done)) / 2


def train_step(model: Any, batch: list[Example], pad: int, settings: Schedule, optimizer: Any) -> float:
    """One optimizer step; returns the mean loss per labelled token."""
    batch = sorted(batch, key=lambda e: len(e.tokens))
    count = sum(label != IGNORED for e in batch for label in e.labels)
    size = math.ceil(len(batch) / settings.chunks)
    total = 0.0
    optimizer.zero_grad()
    for start in range(0, len(batch), size):
        loss = response_loss(model, *collate(batch[start : start + size], pad)) / count
        loss.backward()
        total += float(loss.detach())
    torch.nn.utils.clip_grad_norm_(model.parameters(), settings.gradient_clip)
    optimizer.step()
    return total


@dataclass(frozen=True)
class WarmUpReport:
    """What the warm-up cost and where it ended."""

    tokens: int
    cpu_seconds: float
    final_loss: float  # mean of the last 20 steps, nats per labelled token


def warm_up(model: Any, tokenizer: Any, pools: list[list[Problem]], settings: WarmUp) -> WarmUpReport:
    """Train `model` in place on worked solutions."""
    return fit(model, examples(tokenizer, pools, settings), tokenizer.pad_token_id, settings)


def fit(model: Any, stream: Iterator[Example], pad: int, settings: Schedule) -> WarmUpReport:
    """Train `model` in place on a stream of examples, with AdamW."""
    optimizer = torch.optim.AdamW(
        model.parameters(), settings.learning_rate, betas=(0.9, 0.95), weight_decay=settings.weight_decay
    )
    model.train()
    started, tokens, losses = time.process_time(), 0, []
    for step in track(range(settings.steps), description="warm-up"):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * learning_rate_share(step, settings)
        batch = [next(stream) for _ in range(settings.batch)]
        tokens += sum(len(e.tokens) for e in batch)
        losses.append(train_step(model, batch, pad, settings, optimizer))
    model.eval()
    recent = losses[-20:]
    return WarmUpReport(tokens, time.process_time() - started, sum(recent) / len(recent))
