"""Replies: what a truthful server says is read exactly; every lie is refused, its field and value named."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_srpo.rollout.sglang.replies import BadReply, Expected, parse_reply, parse_version
from megatron_srpo.rollout.types import Completion, VersionSpan

STOPS = frozenset({7, 9})
VOCABULARY = 50

Change = Callable[[dict[str, Any]], Any]


def make_reply(
    tokens: list[int], reason: str, spans: list[tuple[str, int]] | None = None, rid: str = "r-1-"
) -> dict[str, Any]:
    """A reply as SGLang writes it; ``spans`` are (version, tokens)."""
    spans = spans or [("3", len(tokens))]
    ends = [sum(length for _, length in spans[: place + 1]) for place in range(len(spans))]
    return {
        "text": "of no interest",
        "output_ids": list(tokens),
        "meta_info": {
            "id": rid,
            "finish_reason": {"type": reason},
            "output_token_logprobs": [
                [-0.125 * (place + 1), token, None] for place, token in enumerate(tokens)
            ],
            "completion_tokens": len(tokens),
            "weight_version": spans[-1][0],
            "weight_versions": [
                {"version": version, "start": start, "end": end}
                for (version, _), start, end in zip(spans, [0, *ends], ends, strict=False)
            ],
        },
    }


def expected(most: int) -> Expected:
    return Expected("r-1-", "sums/4#2", most, VOCABULARY, STOPS)


def parse(reply: dict[str, Any], most: int) -> Completion:
    """Through JSON, as over the wire."""
    return parse_reply(json.loads(json.dumps(reply)), expected(most))


ordinary = st.integers(0, VOCABULARY - 1).filter(lambda token: token not in STOPS)


@st.composite
def truthful(draw: st.DrawFn) -> tuple[dict[str, Any], int, list[int], str, list[tuple[str, int]]]:
    """A reply that could come from a working server, with what it must be read as."""
    tokens = draw(st.lists(ordinary, max_size=12))
    reason = draw(st.sampled_from(["stop", "length", "abort"]))
    if reason == "stop":
        tokens.append(draw(st.sampled_from(sorted(STOPS))))
    most = len(tokens) + (0 if reason == "length" else draw(st.integers(0, 5)))
    cuts = (
        sorted(draw(st.sets(st.integers(1, max(1, len(tokens) - 1)), max_size=2))) if len(tokens) > 1 else []
    )
    lengths = [end - start for start, end in zip([0, *cuts], [*cuts, len(tokens)], strict=True)]
    versions = sorted(draw(st.lists(st.integers(0, 9), min_size=len(lengths), max_size=len(lengths))))
    spans = [
        ("default" if version == 0 else str(version), length)
        for version, length in zip(versions, lengths, strict=True)
    ]
    return make_reply(tokens, reason, spans), most, tokens, reason, spans


@given(truthful())
def test_what_a_truthful_server_says_is_read_exactly(
    case: tuple[dict[str, Any], int, list[int], str, list[tuple[str, int]]],
) -> None:
    reply, most, tokens, reason, spans = case
    completion = parse(reply, most)
    assert completion.request_id == "sums/4#2"
    assert list(completion.tokens) == tokens
    assert list(completion.log_probs) == [-0.125 * (place + 1) for place in range(len(tokens))]
    assert completion.finish_reason == reason
    read = [(span.version, span.tokens) for span in completion.version_spans]
    assert read == [(0 if version == "default" else int(version), length) for version, length in spans]


def set_at(*path: str | int, value: Any) -> Change:
    """A change that sets one value deep in a reply."""

    def change(reply: dict[str, Any]) -> None:
        holder: Any = reply
        for step in path[:-1]:
            holder = holder[step]
        holder[path[-1]] = value

    return change


def remove(*path: str) -> Change:
    def change(reply: dict[str, Any]) -> None:
        holder: Any = reply
        for step in path[:-1]:
            holder = holder[step]
        del holder[path[-1]]

    return change


META = "meta_info"
PROBS = "output_token_logprobs"
LIES: dict[str, tuple[Change, str]] = {
    "no meta_info": (remove(META), "meta_info = 'None'"),
    "another request": (set_at(META, "id", value="r-2-"), "meta_info.id = 'r-2-'.*'r-1-'"),
    "no log-probs": (remove(META, PROBS), "output_token_logprobs = 'None'"),
    "log-prob missing": (set_at(META, PROBS, 1, 0, value=None), r"logprobs\[1\] = 'None'.*missing"),
    "log-prob NaN": (set_at(META, PROBS, 1, 0, value=float("nan")), r"logprobs\[1\] = 'nan'.*finite"),
    "log-prob infinite": (set_at(META, PROBS, 1, 0, value=float("-inf")), r"logprobs\[1\] = '-inf'"),
    "log-prob positive": (set_at(META, PROBS, 2, 0, value=0.01), r"logprobs\[2\] = '0.01'.*positive"),
    "log-prob a word": (set_at(META, PROBS, 0, 0, value="-0.1"), r"logprobs\[0\] = '-0.1'"),
    "entry too short": (set_at(META, PROBS, 0, value=[-0.1]), r"logprobs\[0\] = '\[-0.1\]'"),
    "token unknown": (set_at(META, PROBS, 1, 1, value=VOCABULARY), r"logprobs\[1\] = '50'.*0 to 49"),
    "token negative": (set_at(META, PROBS, 1, 1, value=-1), r"logprobs\[1\] = '-1'"),
    "token a fraction": (set_at(META, PROBS, 1, 1, value=1.5), r"logprobs\[1\] = '1.5'"),
    "token a truth value": (set_at(META, PROBS, 1, 1, value=True), r"logprobs\[1\] = 'True'"),
    "ids differ": (set_at("output_ids", 0, value=12), "output_ids = '4'.*differs"),
    "ids fewer": (set_at("output_ids", value=[1, 2]), "output_ids = '2'.*4 tokens"),
    "count differs": (set_at(META, "completion_tokens", value=5), "completion_tokens = '5'.*4 tokens"),
    "reason unknown": (set_at(META, "finish_reason", value={"type": "tired"}), "type = 'tired'"),
    "reason missing": (set_at(META, "finish_reason", value=None), "finish_reason = 'None'"),
    "length, but a stop token": (
        set_at(META, "finish_reason", value={"type": "length"}),
        "type = 'length'.*a stop token",
    ),
    "stop token in the middle": (
        lambda reply: (set_at(META, PROBS, 1, 1, value=9)(reply), set_at("output_ids", 1, value=9)(reply)),
        "= '9'; a stop token, but 1 is not the end",
    ),
    "spans empty": (set_at(META, "weight_versions", value=[]), "weight_versions"),
    "spans too short": (set_at(META, "weight_versions", 0, "end", value=3), "cover 3 of 4 tokens"),
    "spans with a gap": (set_at(META, "weight_versions", 0, "start", value=1), "must start at 0"),
    "span not a mapping": (set_at(META, "weight_versions", value=[3]), "weight_versions"),
    "version not a number": (
        set_at(META, "weight_versions", 0, "version", value="v3"),
        "weight_version = 'v3'",
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_refused_by_field_and_value(name: str) -> None:
    honest = make_reply([1, 2, 3, 7], "stop")
    assert parse(honest, 6).finish_reason == "stop"
    change, named = LIES[name]
    false = copy.deepcopy(honest)
    change(false)
    with pytest.raises(BadReply, match=f"(?s){named}"):
        parse(false, 6)


@pytest.mark.parametrize(
    ("tokens", "reason", "most", "named"),
    [
        ([1, 2, 3], "stop", 6, r"none of the stop tokens \[7, 9\]"),
        ([], "stop", 6, "the last of 0 tokens"),
        ([1, 2, 3], "length", 6, "after 3 of 6 tokens.*context_length"),
        ([1, 2, 3], "length", 2, "3 tokens.*at most 2"),
        ([1, 2, 3, 7], "stop", 3, "4 tokens.*at most 3"),
    ],
)
def test_a_finish_reason_that_the_tokens_deny(tokens: list[int], reason: str, most: int, named: str) -> None:
    with pytest.raises(BadReply, match=named):
        parse(make_reply(tokens, reason), most)


def test_versions_must_not_fall() -> None:
    with pytest.raises(BadReply, match="must not fall"):
        parse(make_reply([1, 2], "length", [("4", 1), ("3", 1)]), 2)


def test_a_server_without_spans_says_one_version() -> None:
    reply = make_reply([1, 2], "length")
    del reply["meta_info"]["weight_versions"]
    assert parse(reply, 2).version_spans == (VersionSpan(3, 2),)


def test_rounding_above_zero_is_zero() -> None:
    """A float32 softmax may sum to 1 + 1e-7, which puts the log-prob of a certain token above zero."""
    reply = make_reply([1], "length")
    reply["meta_info"]["output_token_logprobs"][0][0] = 1.2e-7
    assert parse(reply, 1).log_probs == (0.0,)


@pytest.mark.parametrize(("text", "version"), [("default", 0), ("0", 0), ("17", 17)])
def test_versions_are_numbers(text: str, version: int) -> None:
    assert parse_version(text) == version


@pytest.mark.parametrize("text", [None, 3, "", "-1", "1.0", "²", " 1"])
def test_other_versions_are_refused(text: Any) -> None:
    with pytest.raises(BadReply, match="weight_version"):
        parse_version(text)


@given(
    st.recursive(st.none() | st.booleans() | st.floats() | st.text() | st.integers(), st.lists, max_leaves=6)
)
def test_any_value_in_any_field_is_refused_or_makes_no_difference(value: Any) -> None:
    """Whatever a field holds, the parser answers with BadReply or with a sound completion."""
    honest = make_reply([1, 2, 3, 7], "stop")
    for field in honest["meta_info"]:
        reply = copy.deepcopy(honest)
        reply["meta_info"][field] = value
        try:
            completion = parse_reply(reply, expected(6))
        except BadReply:
            continue
        assert completion.tokens == (1, 2, 3, 7)
        assert all(log_prob <= 0 for log_prob in completion.log_probs)
