from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_srpo.data.sampler import PromptSampler
from megatron_srpo.data.types import Prompt
from megatron_srpo.errors import DataError
from tests.data.helpers import prompt


def prompts(**counts: int) -> list[Prompt]:
    return [
        prompt(id=f"{source}/{index}", source=source)
        for source, count in counts.items()
        for index in range(count)
    ]


def ids(batch: list[Prompt]) -> list[str]:
    return [item.id for item in batch]


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 5), st.booleans())
def test_every_epoch_holds_every_prompt_once(count: int, size: int, seed: int, shuffle: bool) -> None:
    sampler = PromptSampler(prompts(a=count), seed, shuffle)
    steps = 3 * count // size + 1
    stream = [name for step in range(steps) for name in ids(sampler.batch(step, size))]
    for epoch in range(len(stream) // count):
        assert len(set(stream[epoch * count : (epoch + 1) * count])) == count


@given(st.integers(0, 500), st.integers(1, 40), st.integers(1, 20), st.booleans())
def test_the_stream_does_not_depend_on_how_it_is_cut(
    position: int, first: int, second: int, mix: bool
) -> None:
    weights = {"a": 3.0, "b": 1.0} if mix else None
    sampler = PromptSampler(prompts(a=7, b=5), 1, weights=weights)
    whole = ids(sampler.batch_at(position, first + second))
    # A fresh sampler at the same position goes on exactly: that is resuming.
    again = PromptSampler(prompts(a=7, b=5), 1, weights=weights)
    assert ids(again.batch_at(position + first, second)) == whole[first:]
    assert ids(sampler.batch_at(position, first)) == whole[:first]


def test_batch_is_batch_at_consumed_prompts() -> None:
    sampler = PromptSampler(prompts(a=50), 3)
    assert sampler.batch(4, 8) == sampler.batch_at(32, 8)
    assert len(sampler) == 50


def test_epochs_and_seeds_differ_and_order_is_fixed() -> None:
    sampler = PromptSampler(prompts(a=20), 0)
    first, second = ids(sampler.batch(0, 20)), ids(sampler.batch(1, 20))
    assert first != second
    assert first != ids(PromptSampler(prompts(a=20), 1).batch(0, 20))
    # Pinned, because a run resumed under another version of NumPy must see the same data.
    assert first[:6] == ["a/11", "a/3", "a/13", "a/2", "a/15", "a/1"]


def test_unshuffled_epochs_keep_the_order() -> None:
    sampler = PromptSampler(prompts(a=3), 0, shuffle=False)
    assert ids(sampler.batch_at(2, 3)) == ["a/2", "a/0", "a/1"]


@given(st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.7]), min_size=2, max_size=4), st.integers(1, 64))
def test_weights_are_kept_in_every_batch(weights: list[float], size: int) -> None:
    names = [f"s{index}" for index in range(len(weights))]
    sampler = PromptSampler(
        prompts(**dict.fromkeys(names, 9)), 0, weights=dict(zip(names, weights, strict=True))
    )
    for step in (0, 5, 40):
        counts = Counter(item.source for item in sampler.batch(step, size))
        for name, weight in zip(names, weights, strict=True):
            # Evenly spread positions: off by at most one at either end, and by the rounding of quotas.
            assert abs(counts[name] - size * weight / sum(weights)) <= 2.1


def test_blocks_have_exact_quotas_and_sources_have_their_own_epochs() -> None:
    sampler = PromptSampler(prompts(a=10, b=500), 0, weights={"a": 1.0, "b": 3.0})
    counts = Counter(item.source for item in sampler.batch_at(3000, 1000))
    assert counts == {"a": 250, "b": 750}
    drawn = [item.id for item in sampler.batch_at(0, 2000) if item.source == "a"]
    assert all(len(set(drawn[start : start + 10])) == 10 for start in range(0, 500, 10))


def test_a_tiny_weight_is_still_drawn_and_a_zero_weight_is_not() -> None:
    sampler = PromptSampler(prompts(a=5, b=5, c=5), 0, weights={"a": 1.0, "b": 1e-9, "c": 0.0})
    counts = Counter(item.source for item in sampler.batch_at(0, 5000))
    assert counts["b"] == 5
    assert "c" not in counts


def test_without_weights_sources_are_mixed_by_size() -> None:
    counts = Counter(item.source for item in PromptSampler(prompts(a=30, b=10), 0).batch_at(0, 40))
    assert counts == {"a": 30, "b": 10}


@pytest.mark.parametrize(
    ("given_prompts", "weights", "message"),
    [
        ([], None, "no training prompts"),
        (prompts(a=2), {"b": 1.0}, "source 'a' has prompts but no weight"),
        (prompts(a=2), {"a": 1.0, "b": 1.0}, "source 'b' has weight 1.0 but no prompts"),
        (prompts(a=2), {"a": 0.0}, "every source's weight is 0"),
    ],
)
def test_refusals(given_prompts: list[Prompt], weights: dict[str, float] | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        PromptSampler(given_prompts, 0, weights=weights)


@pytest.mark.parametrize(("position", "size"), [(-1, 4), (0, 0)])
def test_impossible_batches_are_refused(position: int, size: int) -> None:
    with pytest.raises(DataError, match="no batch of"):
        PromptSampler(prompts(a=2), 0).batch_at(position, size)
