"""Token sampling against float64 references, and the sampled frequencies against chi-square bounds."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megatron_srpo.rollout import sampling as module
from megatron_srpo.rollout.sampling import inverse_cdf, nucleus_cut, sample_tokens
from megatron_srpo.rollout.seeds import request_seed, uniforms
from megatron_srpo.rollout.types import SamplingParams

# 99.9 % points of the chi-square distribution by degrees of freedom (any table). Seeds are fixed: a correct
# sampler passes or fails for ever, and a wrong one misses these bounds by far.
CHI_SQUARE_999 = {4: 18.47, 7: 24.32, 15: 37.70}
DRAWS = 20000


def seeds(count: int) -> Tensor:
    return torch.tensor([request_seed(3, "sampling", 0, 0, sample) for sample in range(count)])


def logits_of(size: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * scale


def draw(logits: Tensor, params: SamplingParams, count: int = DRAWS, limit: int | None = None) -> Tensor:
    rows = logits.expand(count, -1)
    return sample_tokens(rows, seeds(count), 0, params, limit or len(logits))[0]


def chi_square(tokens: Tensor, probabilities: Tensor) -> float:
    expected = probabilities.double() * len(tokens)
    found = torch.bincount(tokens, minlength=len(probabilities)).double()
    assert found[expected == 0].sum() == 0
    used = expected > 0
    return float(((found - expected)[used] ** 2 / expected[used]).sum())


def reference_nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Renormalised nucleus by sorting, in float64, one row."""
    order = probabilities.double().sort(descending=True)
    before = order.values.cumsum(0) - order.values
    kept = torch.zeros(len(probabilities), dtype=torch.float64)
    inside = before < top_p
    kept[order.indices[inside]] = order.values[inside]
    return kept / kept.sum()


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
def test_frequencies_follow_the_scaled_distribution(temperature: float) -> None:
    logits = logits_of(16, scale=1.0)
    tokens = draw(logits, SamplingParams(temperature, 1.0, 1))
    assert chi_square(tokens, torch.softmax(logits / temperature, -1)) < CHI_SQUARE_999[15]


def test_frequencies_follow_the_nucleus() -> None:
    logits = torch.tensor([2.0, 1.5, 1.0, 0.5, 0.0, -4.0, -5.0, -6.0])
    expected = reference_nucleus(torch.softmax(logits, -1), 0.95)
    assert (expected > 0).sum() == 5
    assert chi_square(draw(logits, SamplingParams(1.0, 0.95, 1)), expected) < CHI_SQUARE_999[4]


def test_frequencies_below_the_vocabulary_limit() -> None:
    logits = logits_of(12, scale=1.0)
    expected = torch.softmax(logits[:8], -1)
    tokens = draw(logits, SamplingParams(1.0, 1.0, 1), limit=8)
    assert chi_square(tokens, torch.cat([expected, torch.zeros(4)])) < CHI_SQUARE_999[7]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_padding_entries_are_never_drawn_but_stay_in_the_normaliser(temperature: float) -> None:
    logits = torch.zeros(500, 70)
    logits[:, 65:] = 9.0  # nearly all of the mass lies on padding
    tokens, log_probs = sample_tokens(logits, seeds(500), 0, SamplingParams(temperature, 0.9, 1), 65)
    assert int(tokens.max()) < 65
    expected = -math.log(65 + 5 * math.exp(9.0))
    # 1e-4: a log-prob of size 10 in float32 carries about 1e-6
    assert torch.allclose(log_probs, torch.full_like(log_probs, expected), atol=1e-4)


def test_log_probs_are_scaled_but_not_renormalised_for_top_p() -> None:
    logits = logits_of(50).expand(64, -1)
    tokens, log_probs = sample_tokens(logits, seeds(64), 0, SamplingParams(0.7, 0.5, 1), 50)
    expected = torch.log_softmax(logits.double() / 0.7, -1).gather(1, tokens[:, None])[:, 0]
    assert (log_probs.double() - expected).abs().max() < 1e-5  # float32 rounding of values up to 10


def test_greedy_takes_the_best_and_reports_temperature_one() -> None:
    logits = torch.stack([logits_of(40, seed) for seed in range(20)])
    tokens, log_probs = sample_tokens(logits, seeds(20), 3, SamplingParams(0.0, 0.1, 1), 40)
    best, place = torch.log_softmax(logits.double(), -1).max(-1)
    assert torch.equal(tokens, place)
    assert (log_probs.double() - best).abs().max() < 1e-5


@given(
    st.lists(st.floats(0, 1, width=32), min_size=1, max_size=200).filter(lambda row: sum(row) > 0),
    st.floats(0, 1, exclude_max=True),
)
def test_inverse_cdf_picks_the_entry_that_covers_the_target(row: list[float], uniform: float) -> None:
    place = int(inverse_cdf(torch.tensor([row]), torch.tensor([uniform], dtype=torch.float64)))
    assert 0 <= place < len(row)
    assert row[place] > 0
    target, slack = uniform * math.fsum(row), 1e-5 * math.fsum(row)  # block sums are float32
    assert math.fsum(row[:place]) <= target + slack
    assert math.fsum(row[: place + 1]) >= target - slack


def test_inverse_cdf_at_the_very_end_skips_empty_entries() -> None:
    weights = torch.zeros(1, 300)
    weights[0, 130] = 0.3
    weights[0, 131] = 0.1
    last = torch.tensor([1 - 2**-53], dtype=torch.float64)
    assert inverse_cdf(weights, last).tolist() == [131]
    assert inverse_cdf(weights, torch.zeros(1, dtype=torch.float64)).tolist() == [130]


@settings(max_examples=60)
@given(st.integers(1, 400), st.integers(0, 1000), st.floats(0.01, 0.99), st.floats(0.0, 8.0))
def test_nucleus_is_the_smallest_that_reaches_top_p(size: int, seed: int, top_p: float, scale: float) -> None:
    probabilities = torch.softmax(torch.stack([logits_of(size, seed, scale), logits_of(size, seed, 0.1)]), -1)
    cut = nucleus_cut(probabilities, top_p)
    for row, least in zip(probabilities.double(), cut.double(), strict=True):
        # 1e-6: the float32 probabilities themselves sum to one only up to that
        assert row[row >= least].sum() >= top_p * row.sum() - 1e-6
        assert row[row > least].sum() < top_p * row.sum() + 1e-6


def test_nucleus_keeps_all_ties() -> None:
    probabilities = torch.tensor([[0.4, 0.2, 0.2, 0.2]])
    cut = nucleus_cut(probabilities, 0.5)
    assert (probabilities >= cut[:, None]).sum() == 4


def test_large_vocabularies_are_split_without_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.stack([logits_of(64, seed) for seed in range(30)])
    whole = sample_tokens(logits, seeds(30), 1, SamplingParams(1.0, 0.9, 1), 64)
    monkeypatch.setattr(module, "MAX_LOGITS", 64 * 7)
    parts = sample_tokens(logits, seeds(30), 1, SamplingParams(1.0, 0.9, 1), 64)
    assert torch.equal(whole[0], parts[0])
    assert torch.equal(whole[1], parts[1])


def test_the_token_is_the_inverse_cdf_of_the_documented_uniform() -> None:
    logits = logits_of(30).expand(200, -1)
    tokens, _ = sample_tokens(logits, seeds(200), 5, SamplingParams(1.0, 1.0, 1), 30)
    cumulative = torch.softmax(logits[0].double(), -1).cumsum(0)
    expected = torch.searchsorted(cumulative, uniforms(seeds(200), 5), right=True)
    assert torch.equal(tokens, expected)
