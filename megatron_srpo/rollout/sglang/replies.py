"""Reading one reply of SGLang's ``/generate``: nothing in it is believed before it is checked.

Format (SGLang 0.5.23, ``managers/tokenizer_manager.py``, ``utils/weight_versions.py``)::

    {"output_ids": [19, 615],
     "meta_info": {"id": "...", "finish_reason": {"type": "stop", "matched": 615},
                   "output_token_logprobs": [[-1.44, 19, null], [-0.003, 615, null]],
                   "completion_tokens": 2, "cached_tokens": 3, "weight_version": "2",
                   "weight_versions": [{"version": "1", "start": 0, "end": 1}, {"version": "2", ...}]}}

Token ids and log-probs come from ``output_token_logprobs``; the reply's text is never looked at.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from megatron_srpo.errors import EngineError
from megatron_srpo.rollout.types import Completion, FinishReason, VersionSpan

#: SGLang's name for the weights that a server loaded when it started: our version 0.
FIRST_VERSION = "default"

#: A log-prob this little above zero is the rounding of a softmax that sums to one only up to float32.
ROUNDING = 1e-5


class BadReply(EngineError):
    """A reply that contradicts itself or the request; the message names the field and its value."""


@dataclass(frozen=True)
class Expected:
    """What was asked, and therefore what a reply may say.

    Attributes:
        rid: request id on the wire.
        request_id: the id that the completion carries.
        max_new_tokens: most tokens.
        vocab_size: token ids of the model, those of its padding included.
        stop_tokens: ids that end a response, and nothing else does.
    """

    rid: str
    request_id: str
    max_new_tokens: int
    vocab_size: int
    stop_tokens: frozenset[int]


def parse_reply(reply: Mapping[str, Any], expected: Expected) -> Completion:
    """Turn a reply into a completion.

    Raises:
        BadReply: a field is missing, of the wrong kind, or cannot be true: another request's id, lengths that
            differ, token ids outside the vocabulary, log-probs that are missing, not finite or positive, more
            tokens than asked, a finish reason that the tokens deny, version spans that do not cover them.
    """
    meta = _field(reply, "meta_info", dict)
    if meta.get("id") != expected.rid:
        raise _lie("meta_info.id", meta.get("id"), f"expected {expected.rid!r}")
    tokens, log_probs = _tokens(meta, expected)
    _check_counts(reply, meta, tokens)
    reason = _finish_reason(meta, tokens, expected)
    spans = _spans(meta, len(tokens))
    return Completion(expected.request_id, tokens, log_probs, reason, spans)


def parse_version(text: Any) -> int:
    """Read a weight version as we write it: a decimal number, or SGLang's word for the first weights.

    Raises:
        BadReply: anything else.
    """
    if text == FIRST_VERSION:
        return 0
    if not isinstance(text, str) or not (text.isascii() and text.isdigit()):
        raise _lie("weight_version", text, "expected a number; who else updates this server's weights?")
    return int(text)


def _tokens(meta: Mapping[str, Any], expected: Expected) -> tuple[tuple[int, ...], tuple[float, ...]]:
    entries = _field(meta, "output_token_logprobs", list)
    if len(entries) > expected.max_new_tokens:
        raise _lie(
            "meta_info.output_token_logprobs",
            f"{len(entries)} tokens",
            f"asked for at most {expected.max_new_tokens}",
        )
    tokens, log_probs = [], []
    for place, entry in enumerate(entries):
        where = f"meta_info.output_token_logprobs[{place}]"
        if not isinstance(entry, list) or len(entry) < 2:
            raise _lie(where, entry, "expected [log-prob, token id, text]")
        log_probs.append(_log_prob(where, entry[0]))
        tokens.append(_token(where, entry[1], expected.vocab_size))
    return tuple(tokens), tuple(log_probs)


def _log_prob(where: str, value: Any) -> float:
    # JSON has no NaN and no infinity: SGLang writes both as null.
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _lie(where, value, "the log-prob is missing or not finite")
    if value > ROUNDING:
        raise _lie(where, value, "the log-prob is positive")
    return min(float(value), 0.0)


def _token(where: str, value: Any, vocab_size: int) -> int:
    if not _is_count(value) or value >= vocab_size:
        raise _lie(where, value, f"the model's token ids are 0 to {vocab_size - 1}")
    return value


def _check_counts(reply: Mapping[str, Any], meta: Mapping[str, Any], tokens: tuple[int, ...]) -> None:
    """Compare with what the reply says elsewhere about its tokens."""
    output_ids = reply.get("output_ids")
    if output_ids is not None and (not isinstance(output_ids, list) or tuple(output_ids) != tokens):
        shown = len(output_ids) if isinstance(output_ids, list) else output_ids
        raise _lie("output_ids", shown, f"differs from the {len(tokens)} tokens of output_token_logprobs")
    count = meta.get("completion_tokens")
    if count is not None and count != len(tokens):
        raise _lie("meta_info.completion_tokens", count, f"but log-probs of {len(tokens)} tokens came")


def _finish_reason(meta: Mapping[str, Any], tokens: tuple[int, ...], expected: Expected) -> FinishReason:
    """Check the reason against the tokens: a stop token ends a response, and only there."""
    reason = _field(meta, "finish_reason", dict).get("type")
    if reason not in get_args(FinishReason):
        raise _lie("meta_info.finish_reason.type", reason, f"expected one of {get_args(FinishReason)}")
    early = [place for place, token in enumerate(tokens[:-1]) if token in expected.stop_tokens]
    if early:
        raise _lie("output_token_logprobs", tokens[early[0]], f"a stop token, but {early[0]} is not the end")
    stopped = bool(tokens) and tokens[-1] in expected.stop_tokens
    if reason == "stop" and not stopped:
        raise _lie(
            "meta_info.finish_reason",
            meta["finish_reason"],
            f"the last of {len(tokens)} tokens is none of the stop tokens "
            f"{sorted(expected.stop_tokens)[:8]} that were given; servers add the end-of-sequence ids of the "
            "model folder: give those too",
        )
    if reason == "length" and (stopped or len(tokens) != expected.max_new_tokens):
        raise _lie(
            "meta_info.finish_reason.type",
            reason,
            f"after {len(tokens)} of {expected.max_new_tokens} tokens"
            + (", the last a stop token" if stopped else "; raise the server's context_length"),
        )
    return reason


def _spans(meta: Mapping[str, Any], count: int) -> tuple[VersionSpan, ...]:
    """Read the runs of equal weights; a server that knows none says one version for the whole response."""
    raw = meta.get("weight_versions")
    if raw is None:
        return (VersionSpan(parse_version(meta.get("weight_version")), count),)
    spans: list[VersionSpan] = []
    end = 0
    if not isinstance(raw, list) or not raw:
        raise _lie("meta_info.weight_versions", raw, "expected a list of spans")
    for span in raw:
        if not isinstance(span, dict) or span.get("start") != end or not _is_count(span.get("end")):
            raise _lie("meta_info.weight_versions", raw, f"a span must start at {end} and have an end")
        version = parse_version(span.get("version"))
        if span["end"] < end or (spans and version < spans[-1].version):
            raise _lie("meta_info.weight_versions", raw, "ends and versions must not fall")
        spans.append(VersionSpan(version, span["end"] - end))
        end = span["end"]
    if end != count:
        raise _lie("meta_info.weight_versions", raw, f"spans cover {end} of {count} tokens")
    return tuple(spans)


def _field(holder: Mapping[str, Any], name: str, kind: type) -> Any:
    value = holder.get(name)
    if not isinstance(value, kind):
        raise _lie(name, value, f"expected a {kind.__name__}")
    return value


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _lie(field: str, value: Any, why: str) -> BadReply:
    return BadReply(f"the server's reply cannot be true: {field} = {str(value)[:300]!r}; {why}")
