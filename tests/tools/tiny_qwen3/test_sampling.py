"""Batched generation against one prompt at a time without a cache."""

from typing import Any

import pytest
import torch

from tools.tiny_qwen3 import corpus, sampling
from tools.tiny_qwen3.corpus import Problem


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    return corpus.held_out(2)


def prompts_of(tokenizer: Any, problems: list[Problem]) -> list[list[int]]:
    return [tokenizer(corpus.render(tokenizer, problem.question))["input_ids"] for problem in problems]


@torch.no_grad()
def greedy_reference(model: Any, prompt: list[int], limit: int) -> list[int]:
    tokens: list[int] = []
    while len(tokens) < limit and (not tokens or tokens[-1] != model.config.eos_token_id):
        logits = model(input_ids=torch.tensor([prompt + tokens])).logits[0, -1]
        tokens.append(int(logits.argmax()))
    return tokens


def test_left_padding() -> None:
    tokens, mask = sampling.left_padded([[1, 2, 3], [4]], pad=0)
    assert tokens.tolist() == [[1, 2, 3], [0, 0, 4]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_batch_of_unequal_prompts_equals_one_by_one(
    carried_model: Any, tokenizer: Any, problems: list[Problem]
) -> None:
    prompts = prompts_of(tokenizer, problems)
    assert len({len(prompt) for prompt in prompts}) > 1
    found = sampling.generate(carried_model, prompts, 40, temperature=0.0, batch=3)
    assert found == [greedy_reference(carried_model, prompt, 40) for prompt in prompts]


def test_responses_end_with_the_end_of_turn_or_at_the_limit(
    carried_model: Any, tokenizer: Any, problems: list[Problem]
) -> None:
    prompts = prompts_of(tokenizer, problems) * 4
    stop = carried_model.config.eos_token_id
    for response in sampling.generate(carried_model, prompts, 6, temperature=1.0):
        assert stop not in response[:-1]
        assert len(response) == 6 or response[-1] == stop


def test_seed_decides(carried_model: Any, tokenizer: Any, problems: list[Problem]) -> None:
    prompts = prompts_of(tokenizer, problems) * 4
    first, again, other = (
        sampling.generate(carried_model, prompts, 30, temperature=1.0, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_samples_follow_the_distribution() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.2, 0.7]])).expand(20_000, 3)
    drawn = sampling.pick(logits, 1.0, torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn, minlength=3) / 20_000
    # standard error of a share is at most sqrt(0.25 / 20000) = 0.0035; four of them
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.2, 0.7]), rtol=0, atol=0.014)


def test_temperature_zero_takes_the_most_likely() -> None:
    logits = torch.tensor([[0.0, 3.0, 2.9]])
    assert sampling.pick(logits, 0.0, torch.Generator()).tolist() == [1]
