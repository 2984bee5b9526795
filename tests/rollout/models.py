"""Small random Qwen3 folders and requests for the engine's tests."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from megatron_srpo.rollout.seeds import request_seed
from megatron_srpo.rollout.types import Completion, Request
from tests.model.tiny import random_qwen3

VOCABULARY = 96
EOS = 7


def write_model(folder: Path, **overrides: Any) -> Path:
    """Write a random two-layer Qwen3 with grouped key-value heads; token 7 ends a response."""
    model = random_qwen3(**{"eos_token_id": EOS, **overrides})
    model.save_pretrained(folder)
    return folder


def make_requests(
    prompts: int = 5, samples: int = 3, shortest: int = 2, purpose: str = "test"
) -> list[Request]:
    """Make requests for prompts of different lengths, ``samples`` seeds each."""
    generator = torch.Generator().manual_seed(0)
    texts = [
        torch.randint(0, VOCABULARY, (shortest + 3 * p,), generator=generator).tolist()
        for p in range(prompts)
    ]
    return [
        Request(f"{p}/{s}", tuple(text), request_seed(1, purpose, 0, p, s))
        for p, text in enumerate(texts)
        for s in range(samples)
    ]


def tokens_of(completions: Sequence[Completion]) -> dict[str, tuple[int, ...]]:
    """Map request ids to sampled tokens."""
    return {completion.request_id: completion.tokens for completion in completions}


@torch.no_grad()
def full_forward_log_probs(
    model: torch.nn.Module, prompt: Sequence[int], response: Sequence[int], temperature: float
) -> list[float]:
    """Log-probs of the response by one uncached, unpadded forward of transformers over the whole sequence."""
    logits = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1].double()
    log_probs = torch.log_softmax(logits / temperature, dim=-1)
    return log_probs.gather(-1, torch.tensor(response)[:, None])[:, 0].tolist()
