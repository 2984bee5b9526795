"""The warm-up: its loss against the plain definition, its schedule, and that it repeats itself exactly."""

import itertools
import random
from typing import Any

import pytest
import torch

from tools.tiny_qwen3 import corpus, warm_up
from tools.tiny_qwen3.corpus import IGNORED, Example
from tools.tiny_qwen3.warm_up import WarmUp

SHORT = WarmUp(steps=3, batch=6, chunks=2, warm_up_steps=1)


@pytest.fixture(scope="module")
def pools() -> list[list[corpus.Problem]]:
    return corpus.training_problems(60, seed=11)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_model_divides_for_tensor_and_pipeline_parallelism(tokenizer: Any) -> None:
    config = warm_up.build_model(tokenizer, 0).config
    for size in (
        config.num_attention_heads,
        config.num_key_value_heads,
        config.intermediate_size,
        config.hidden_size,
        config.vocab_size,
    ):
        assert size % 4 == 0
    assert config.num_hidden_layers % 2 == 0
    assert config.vocab_size >= len(tokenizer)
    assert config.num_key_value_heads < config.num_attention_heads  # grouped queries


def test_loss_is_the_sum_of_negative_log_probs_of_the_labels(tokenizer: Any) -> None:
    model = warm_up.build_model(tokenizer, 0)
    examples = [
        Example([5, 6, 7, 8], [IGNORED, IGNORED, 7, 9]),
        Example([5, 6], [IGNORED, 6]),
    ]
    tokens, labels = warm_up.collate(examples, pad=tokenizer.pad_token_id)
    found = warm_up.response_loss(model, tokens, labels)
    first = torch.log_softmax(model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits[0], -1)
    second = torch.log_softmax(model(input_ids=torch.tensor([[5, 6]])).logits[0], -1)
    expected = -(first[1, 7] + first[2, 9] + second[0, 6])
    # fp32 with another order of summation: a few units in the last place of a number near 20
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_collate_pads_on_the_right_without_labels() -> None:
    tokens, labels = warm_up.collate([Example([1, 2, 3], [IGNORED, 2, 3]), Example([4], [4])], pad=0)
    assert tokens.tolist() == [[1, 2, 3], [4, 0, 0]]
    assert labels.tolist() == [[IGNORED, 2, 3], [4, IGNORED, IGNORED]]


def test_a_step_does_not_depend_on_chunks_or_order(tokenizer: Any, pools: Any) -> None:
    batch = list(itertools.islice(warm_up.examples(tokenizer, pools, SHORT), 6))
    after = []
    for chunks, order in ((1, batch), (3, batch[::-1])):
        model = warm_up.build_model(tokenizer, 0)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        settings = WarmUp(chunks=chunks)
        loss = warm_up.train_step(model, order, tokenizer.pad_token_id, settings, optimizer)
        after.append((loss, weights(model)))
    assert after[0][0] == pytest.approx(after[1][0], rel=1e-5)
    for name, tensor in after[0][1].items():
        torch.testing.assert_close(
            tensor, after[1][1][name], rtol=1e-4, atol=1e-6
        )  # fp32 sums in another order


def test_learning_rate_rises_then_falls_to_its_final_share() -> None:
    settings = WarmUp(steps=100, warm_up_steps=10, final_share=0.1)
    shares = [warm_up.learning_rate_share(step, settings) for step in range(101)]
    assert shares[0] == pytest.approx(0.1)
    assert shares[9] == shares[10] == pytest.approx(1.0)
    assert shares[100] == pytest.approx(0.1)
    assert all(a > b for a, b in itertools.pairwise(shares[10:]))


def test_opening_and_rest_draw_their_own_kinds(
    tokenizer: Any, pools: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def recorded(tokenizer: Any, problem: Any, kind: str, rng: random.Random) -> Example:
        asked.append(kind)
        return Example([1], [1])

    monkeypatch.setattr(warm_up, "example", recorded)
    settings = WarmUp(steps=10, batch=10, opening=0.3, opening_kinds=(0.0, 1.0, 0.0), kinds=(1.0, 0.0, 0.0))
    list(itertools.islice(warm_up.examples(tokenizer, pools, settings), 100))
    assert asked == ["teacher"] * 30 + ["student"] * 70


def test_same_seed_gives_the_same_weights_and_another_seed_others(tokenizer: Any, pools: Any) -> None:
    found = []
    for seed in (0, 0, 1):
        model = warm_up.build_model(tokenizer, seed)
        settings = WarmUp(steps=3, batch=6, chunks=2, warm_up_steps=1, seed=seed)
        report = warm_up.warm_up(model, tokenizer, pools, settings)
        assert report.tokens > 100
        found.append(weights(model))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert not torch.equal(found[0]["model.norm.weight"], found[2]["model.norm.weight"])


def test_loss_falls(tokenizer: Any, pools: Any) -> None:
    """One batch seen twelve times: its loss must fall well below that of random weights (log 704 = 6.6)."""
    batch = list(itertools.islice(warm_up.examples(tokenizer, pools, SHORT), 6))
    model = warm_up.build_model(tokenizer, 0)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = [warm_up.train_step(model, batch, tokenizer.pad_token_id, SHORT, optimizer) for _ in range(12)]
    assert losses[0] > 5
    assert losses[-1] < 3.5
