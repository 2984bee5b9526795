"""Drafts: what the next call asks for, and how the parts of a response become one."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_srpo.rollout.sglang.draft import PADDING_TRIES, Draft
from megatron_srpo.rollout.types import Completion, FinishReason, Request, SamplingParams, VersionSpan
from megatron_srpo.rollout.vocabulary import Vocabulary

REQUEST = Request("a", (1, 2, 3), 99)
VOCABULARY = Vocabulary(50, 48, (7,))


def make_draft(temperature: float = 0.8, vocabulary: Vocabulary = VOCABULARY, most: int = 20) -> Draft:
    return Draft(REQUEST, SamplingParams(temperature, 0.9, most), vocabulary)


def part(tokens: Sequence[int], reason: FinishReason, *spans: tuple[int, int]) -> Completion:
    covered = tuple(VersionSpan(*span) for span in spans or [(0, len(tokens))])
    return Completion("a", tuple(tokens), tuple(-0.01 * token for token in tokens), reason, covered)


def test_the_first_call() -> None:
    assert make_draft().body("r-", 20) == {
        "rid": "r-",
        "input_ids": [1, 2, 3],
        "sampling_params": {
            "temperature": 0.8,
            "top_p": 0.9,
            "max_new_tokens": 20,
            "sampling_seed": 99,
            "stop_token_ids": [7, 48, 49],
        },
        "return_logprob": True,
    }


def test_without_stop_tokens_those_of_the_model_folder_are_off_too() -> None:
    params = make_draft(vocabulary=Vocabulary(50, 50, ())).body("r-", 20)["sampling_params"]
    assert params["ignore_eos"] is True
    assert "stop_token_ids" not in params


@pytest.mark.parametrize(
    ("tokens", "reason", "ends"),
    [
        ([5, 7], "stop", "stop"),
        (range(10, 30), "length", "length"),
        ([5, 6], "abort", None),
        ([], "abort", None),
        ([5, 7], "abort", "stop"),
        (range(10, 30), "abort", "length"),
        ([5, 48], "stop", None),
        ([5], "length", None),
    ],
    ids=[
        "stop",
        "length",
        "abort",
        "abort at once",
        "abort after the end",
        "abort when full",
        "padding",
        "part",
    ],
)
def test_why_a_response_ends(tokens: Sequence[int], reason: FinishReason, ends: FinishReason | None) -> None:
    assert make_draft().add(part(tokens, reason)) == ends


def test_an_aborted_response_goes_on_where_it_was_with_the_same_seed() -> None:
    draft = make_draft()
    draft.add(part([5, 6], "abort", (1, 2)))
    body = draft.body("s-", draft.most)
    assert body["input_ids"] == [1, 2, 3, 5, 6]
    assert body["sampling_params"]["max_new_tokens"] == 18
    assert body["sampling_params"]["sampling_seed"] == 99
    assert draft.newest_version == 1
    assert draft.add(part([8, 7], "stop", (1, 1), (2, 1))) == "stop"
    assert draft.completion("stop") == Completion(
        "a", (5, 6, 8, 7), (-0.05, -0.06, -0.08, -0.07), "stop", (VersionSpan(1, 3), VersionSpan(2, 1))
    )


def test_padding_is_dropped_and_its_place_sampled_with_another_seed() -> None:
    draft = make_draft()
    assert draft.add(part([5, 49], "stop", (1, 1), (2, 1))) is None
    assert draft.tokens == (5,)
    body = draft.body("s-", draft.most)
    assert body["input_ids"] == [1, 2, 3, 5]
    assert body["sampling_params"]["sampling_seed"] != 99
    assert "logit_bias" not in body["sampling_params"]
    assert draft.completion("abort").version_spans == (VersionSpan(1, 1),)


@pytest.mark.parametrize(("temperature", "tries"), [(0.0, 1), (1.0, PADDING_TRIES)])
def test_padding_that_returns_is_biased_away(temperature: float, tries: int) -> None:
    draft, seeds = make_draft(temperature), set()
    for _ in range(tries):
        params = draft.body("r-", draft.most)["sampling_params"]
        assert "logit_bias" not in params
        seeds.add(params["sampling_seed"])
        draft.add(part([48], "stop"))
    assert len(seeds) == tries
    assert draft.body("r-", 1)["sampling_params"]["logit_bias"] == {"48": -1e9, "49": -1e9}
    assert draft.most == 1
    assert draft.add(part([5], "length")) is None
    assert draft.most == 19
    assert "logit_bias" not in draft.body("r-", 1)["sampling_params"], "the next place starts afresh"


@given(st.lists(st.lists(st.integers(8, 47), max_size=4), min_size=1, max_size=6), st.data())
def test_parts_add_up(parts: list[list[int]], data: st.DataObject) -> None:
    """However a response is cut into calls, padding and empty calls between, its tokens and spans add up."""
    draft, version = make_draft(most=100), 0
    versions: list[int] = []
    for tokens in parts:
        version += data.draw(st.integers(0, 1))
        hit = data.draw(st.booleans())
        sampled = [*tokens, 48] if hit else tokens
        assert draft.add(part(sampled, "stop" if hit else "abort", (version, len(sampled)))) is None
        versions += [version] * len(tokens)
    completion = draft.completion("abort")
    flat = [token for tokens in parts for token in tokens]
    assert list(completion.tokens) == flat
    assert list(completion.log_probs) == [-0.01 * token for token in flat]
    spans = completion.version_spans
    assert [span.version for span in spans for _ in range(span.tokens)] == versions
    assert all(first.version < second.version for first, second in pairwise(spans))
    assert draft._missing == 100 - len(flat)
