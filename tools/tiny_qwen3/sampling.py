"""Batched generation with a KV cache, for the measurements."""

from typing import Any

import torch


def left_padded(prompts: list[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and attention mask [B, T], padded on the left."""
    length = max(len(p) for p in prompts)
    tokens = torch.tensor([[pad] * (length - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts])
    return tokens, mask


def pick(logits_BV: torch.Tensor, temperature: float, generator: torch.Generator) -> torch.Tensor:
    """The next token of every row; temperature 0 takes the most likely one."""
    if temperature == 0:
        return logits_BV.argmax(-1)
    return torch.multinomial(torch.softmax(logits_BV / temperature, -1), 1, generator=generator)[:, 0]


@torch.no_grad()
def generate_batch(
    model: Any, prompts: list[list[int]], limit: int, temperature: float, generator: torch.Generator
) -> list[list[int]]:
    """Up to `limit` response tokens per prompt; a response ends with the end-of-turn token unless it was cut
    off.
    """
    stop = model.config.eos_token_id
    tokens, mask = left_padded(prompts, model.config.pad_token_id)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache: Any = None
    columns: list[torch.Tensor] = []
    done = torch.zeros(len(prompts), dtype=torch.bool)
    while len(columns) < limit and not bool(done.all()):
        output = model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            logits_to_keep=1,
        )
        cache = output.past_key_values
        chosen = pick(output.logits[:, -1], temperature, generator)
        columns.append(chosen)
        done |= chosen == stop
        tokens, positions = chosen[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, torch.ones_like(tokens)], 1)
    rows = torch.stack(columns, 1).tolist()
    return [row[: row.index(stop) + 1] if stop in row else row for row in rows]


def generate(
    model: Any, prompts: list[list[int]], limit: int, temperature: float, seed: int = 0, batch: int = 256
) -> list[list[int]]:
    """`generate_batch` over many prompts, sorted by length to save padding; results in the order of the
    prompts.
    """
    generator = torch.Generator().manual_seed(seed)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    responses: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        drawn = generate_batch(model, [prompts[i] for i in rows], limit, temperature, generator)
        for index, row in zip(rows, drawn, strict=True):
            responses[index] = row
    return responses
