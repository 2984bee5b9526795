"""Cutting prompts into prefill forwards."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_srpo.rollout import decode
from megatron_srpo.rollout.decode import prefill_chunks


@given(st.lists(st.integers(1, 6000), min_size=1, max_size=40))
def test_chunks_cover_all_prompts_within_the_budget(lengths: list[int]) -> None:
    chunks = prefill_chunks(lengths)
    assert [place for first, last in chunks for place in range(first, last)] == list(range(len(lengths)))
    for first, last in chunks:
        assert last - first == 1 or max(lengths[first:last]) * (last - first) <= decode.PREFILL_TOKENS


def test_a_prompt_beyond_the_budget_goes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "PREFILL_TOKENS", 10)
    assert prefill_chunks([2, 5, 5, 30, 1]) == [(0, 2), (2, 3), (3, 4), (4, 5)]


def test_short_prompts_share_one_forward() -> None:
    assert prefill_chunks([10, 20, 30]) == [(0, 3)]
