"""Seeded sampling in SGLang's processes, against the local engine's random numbers and naive references."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from megatron_srpo.rollout import sampling as local_sampling
from megatron_srpo.rollout import seeds as local_seeds
from megatron_srpo.sglang_on_cpu import sampling

SEEDS = st.integers(0, 2**63 - 1)


def never(*args: Any, **kwargs: Any) -> Tensor:
    raise AssertionError("SGLang's own sampler was called")


def make_batch(*requests: tuple[int | None, int]) -> SimpleNamespace:
    """A schedule batch of requests given as (seed, length of the prompt)."""
    return SimpleNamespace(
        reqs=[
            SimpleNamespace(
                sampling_params=SimpleNamespace(sampling_seed=seed), origin_input_ids=[0] * prompt_tokens
            )
            for seed, prompt_tokens in requests
        ]
    )


def states_of(batch: SimpleNamespace) -> Tensor:
    return sampling.add_seeds(SimpleNamespace(sampling_seed=None), object, batch, 640).sampling_seed


@given(SEEDS, st.integers(1, 200_000), st.integers(0, 100_000))
def test_uniforms_are_those_of_the_local_engine(seed: int, prompt_tokens: int, place: int) -> None:
    """SGLang counts from the start of the prompt, and names the token that is fed, not the one drawn."""
    states = torch.tensor([sampling.start_state(seed, prompt_tokens)])
    ours = sampling.uniforms(states, torch.tensor([prompt_tokens - 1 + place]))
    assert torch.equal(ours, local_seeds.uniforms(torch.tensor([seed]), place))


def test_states_of_a_batch_are_those_of_its_requests() -> None:
    requests = [(3, 10), (2**63 - 1, 1), (0, 500)]
    states = states_of(make_batch(*requests))
    assert states.dtype == torch.int64
    assert states.tolist() == [sampling.start_state(seed, length) for seed, length in requests]


def test_negative_seeds_are_taken_as_the_same_bits() -> None:
    """SGLang allows them."""
    assert sampling.start_state(-1, 4) == sampling.start_state(2**64 - 1, 4)


def test_a_request_without_a_seed_keeps_the_one_that_it_drew() -> None:
    batch = make_batch((None, 5), (None, 5))
    first = states_of(batch)
    assert torch.equal(states_of(batch), first)
    assert first[0] != first[1]


@given(st.integers(0, 2**32), st.integers(1, 8), st.integers(1, 300))
def test_inverse_cdf_finds_what_a_loop_finds(seed: int, rows: int, vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(rows, vocabulary, generator=generator)
    weights[torch.rand(rows, vocabulary, generator=generator) < 0.5] = 0.0
    weights[:, seed % vocabulary] = 0.25
    uniforms = torch.rand(rows, generator=generator, dtype=torch.float64)
    tokens = sampling.inverse_cdf(weights, uniforms)
    assert tokens.dtype == torch.int32
    for row in range(rows):
        target, total, expected = uniforms[row].item() * weights[row].double().sum().item(), 0.0, -1
        for token in range(vocabulary):
            total += weights[row, token].double().item()
            if total > target:
                expected = token
                break
        assert tokens[row] == expected
        assert weights[row, tokens[row]] > 0


def test_the_largest_uniform_stays_inside_the_vocabulary() -> None:
    weights = torch.tensor([[0.1, 0.2, 0.7, 0.0]])
    for uniform, token in ((0.0, 0), (1.0 - 2.0**-53, 2), (1.0, 2)):
        assert sampling.inverse_cdf(weights, torch.tensor([uniform], dtype=torch.float64)).item() == token


def test_agrees_with_the_local_engine_token_for_token() -> None:
    """Same seed, same logits: the same response from either engine."""
    generator = torch.Generator().manual_seed(0)
    prompt, vocabulary = 17, 640
    requests = torch.randint(0, 2**62, (64,), generator=generator)
    states = torch.tensor([sampling.start_state(int(seed), prompt) for seed in requests])
    for place in range(8):
        log_probs = torch.log_softmax(3 * torch.randn(64, vocabulary, generator=generator), dim=-1)
        ours = sampling.sample(never, log_probs.exp(), states, torch.full((64,), prompt - 1 + place))
        theirs = local_sampling.inverse_cdf(log_probs.exp(), local_seeds.uniforms(requests, place))
        assert torch.equal(ours.long(), theirs)


def test_frequencies_follow_the_probabilities() -> None:
    """Chi-square over 20 000 draws, 9 degrees of freedom: 27.9 is exceeded once in a thousand seeds."""
    draws = 20_000
    probs = torch.tensor([0.3, 0.2, 0.15, 0.1, 0.08, 0.06, 0.05, 0.03, 0.02, 0.01])
    states = torch.tensor([sampling.start_state(seed, 3) for seed in range(draws)])
    tokens = sampling.sample(never, probs.expand(draws, -1), states, torch.full((draws,), 2))
    expected = probs * draws
    assert ((torch.bincount(tokens, minlength=10) - expected) ** 2 / expected).sum() < 27.9


def test_without_seeds_the_call_goes_to_sglang() -> None:
    probs, answer = torch.rand(2, 4), torch.tensor([1, 2])
    assert sampling.sample(lambda *given: answer, probs) is answer
    filters = (torch.ones(2).int(), torch.ones(2), torch.zeros(2), False, None, torch.zeros(2))
    assert sampling.sample_filtered(lambda *given, **options: answer, probs, *filters) is answer


def test_a_request_for_the_filtered_distribution_goes_to_sglang() -> None:
    states = torch.tensor([1, 2])
    filters = (torch.ones(2).int(), torch.ones(2), torch.zeros(2), False, states, torch.zeros(2))
    answer = object()
    given = sampling.sample_filtered(
        lambda *arguments, **options: (answer, options),
        torch.rand(2, 4),
        *filters,
        return_filtered_probs=True,
    )
    assert given == (answer, {"return_filtered_probs": True})


def kept_by_a_loop(probs: list[float], top_k: int, top_p: float, min_p: float) -> set[int]:
    """The definitions, one entry at a time: most probable first, ties in the order of the vocabulary."""
    kept, before = set(), 0.0
    for rank, token in enumerate(sorted(range(len(probs)), key=lambda token: -probs[token])):
        inside = top_p >= 1.0 or before <= top_p
        if rank < top_k and inside and probs[token] >= max(probs) * min_p and probs[token] > 0:
            kept.add(token)
        before += probs[token]
    return kept


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=30).filter(any),
    st.integers(1, 40),
    st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    st.sampled_from([0.0, 0.05, 0.5]),
)
def test_filters_keep_what_their_definitions_keep(
    counts: list[int], top_k: int, top_p: float, min_p: float
) -> None:
    # Multiples of 2^-12 are added without rounding, so that both orders of summation agree on the boundary.
    probs = [count / 4096 for count in counts]
    row = torch.tensor([probs])
    kept = sampling.filtered(row, torch.tensor([top_k]), torch.tensor([top_p]), torch.tensor([min_p]))
    # Both reach SGLang's tensors as float32.
    top_p, min_p = torch.tensor([top_p, min_p]).tolist()
    assert set(kept[0].nonzero()[:, 0].tolist()) == kept_by_a_loop(probs, top_k, top_p, min_p)
    assert torch.equal(kept[kept > 0], row[kept > 0])


def test_another_requests_filter_does_not_change_a_token() -> None:
    """One request with top-p sends SGLang's whole batch another way; the others must not notice."""
    generator = torch.Generator().manual_seed(1)
    probs = torch.softmax(torch.randn(32, 500, generator=generator), dim=-1)
    states, positions = torch.arange(32) * 7919, torch.full((32,), 40)
    alone = sampling.sample(never, probs, states, positions)
    top_ps = torch.ones(32)
    top_ps[5] = 0.1
    no_limit, none = torch.full((32,), 1 << 30), torch.zeros(32)
    beside = sampling.sample_filtered(never, probs, no_limit, top_ps, none, False, states, positions)
    others = [row for row in range(32) if row != 5]
    assert torch.equal(alone[others], beside[others])


@pytest.mark.parametrize("needed", [True, False])
def test_min_p_counts_only_when_sglang_says_so(needed: bool) -> None:
    probs = torch.tensor([[0.6, 0.4]]).expand(200, -1)
    states, positions = torch.arange(200) * 31, torch.zeros(200).long()
    unlimited = (torch.full((200,), 1 << 30), torch.ones(200), torch.full((200,), 0.9))
    tokens = sampling.sample_filtered(never, probs, *unlimited, needed, states, positions)
    assert bool((tokens == 1).any()) is not needed
