"""A response on its way: what is sampled so far, and the next ``/generate`` call that carries it on.

Most responses take one call. It takes another when the server let go of a response that we still want (a
weight update that aborts what is in flight), and when it sampled an id of the embedding's padding.

Padding ids (``vocab_limit`` and above) must never be sampled, yet log-probs are normalised over the whole
vocabulary (:class:`~megatron_srpo.rollout.types.Completion`). SGLang's ``logit_bias`` would keep them away,
but acts before the softmax and so moves every log-prob by the padding's share: 6e-4 at worst on the
quickstart's model. So they are stop tokens instead: the call ends there, the id is dropped, and the same
place is sampled again with another seed. That is exactly sampling from the distribution without the padding.
"""

from typing import Any

from megatron_srpo.rollout.seeds import request_seed
from megatron_srpo.rollout.sglang.replies import Expected
from megatron_srpo.rollout.types import Completion, FinishReason, Request, SamplingParams, VersionSpan
from megatron_srpo.rollout.vocabulary import Vocabulary

#: After so many padding ids in one place they are biased away there, at the price named above.
PADDING_TRIES = 16

#: Added to the logits of ids that must not be sampled; JSON has no infinity.
_NEVER = -1e9


class Draft:
    """Tokens, log-probs and version spans of one response, in the order in which calls returned them."""

    def __init__(self, request: Request, sampling: SamplingParams, vocabulary: Vocabulary) -> None:
        self.request, self._sampling, self._vocabulary = request, sampling, vocabulary
        self.tokens: tuple[int, ...] = ()
        self._log_probs: tuple[float, ...] = ()
        self._spans: tuple[VersionSpan, ...] = ()
        self._padding_hits = 0
        self._hits_here = 0

    def expect(self, rid: str, most: int) -> Expected:
        """Say what a reply to :meth:`body` may contain."""
        stops = frozenset((*self._vocabulary.stop_tokens, *self._vocabulary.padding))
        return Expected(rid, self.request.id, most, self._vocabulary.size, stops)

    @property
    def most(self) -> int:
        """Tokens that the next call may sample: all that the response may still get, or one under a bias."""
        return 1 if self._must_bias() else self._missing

    def body(self, rid: str, most: int) -> dict[str, Any]:
        """Return the call that samples at most ``most`` tokens after those at hand.

        Every sample is a call of its own, with a seed of its own: SGLang's ``n`` gives all samples of a call
        the one ``sampling_seed``, hence the same tokens, and a call that fails would lose the whole group.
        """
        stops = [*self._vocabulary.stop_tokens, *self._vocabulary.padding]
        params: dict[str, Any] = {
            "temperature": self._sampling.temperature,
            "top_p": self._sampling.top_p,
            "max_new_tokens": most,
            "sampling_seed": self._seed(),
            # ignore_eos switches *all* stop tokens off, ours as well as those of the model folder.
            **({"stop_token_ids": stops} if stops else {"ignore_eos": True}),
        }
        if self._must_bias():
            params["logit_bias"] = {str(token): _NEVER for token in self._vocabulary.padding}
        return {
            "rid": rid,
            "input_ids": [*self.request.prompt_tokens, *self.tokens],
            "sampling_params": params,
            "return_logprob": True,
        }

    def add(self, part: Completion) -> FinishReason | None:
        """Append a call's tokens; return why the response ends, or None if only the call did."""
        tokens, log_probs, spans = part.tokens, part.log_probs, part.version_spans
        hit = bool(tokens) and tokens[-1] >= self._vocabulary.limit
        if hit:
            tokens, log_probs, spans = tokens[:-1], log_probs[:-1], _shorten(spans)
            self._padding_hits += 1
        self._hits_here = (0 if tokens else self._hits_here) + hit
        self.tokens += tokens
        self._log_probs += log_probs
        self._spans = _join(self._spans, spans)
        return None if hit else self._ending(part)

    def _ending(self, part: Completion) -> FinishReason | None:
        """An abort may meet a response that had just ended; a call's length need not be the response's."""
        if part.finish_reason == "stop" or (part.tokens and part.tokens[-1] in self._vocabulary.stop_tokens):
            return "stop"
        return None if self._missing else "length"

    @property
    def newest_version(self) -> int:
        """Version of the weights that sampled the last token; 0 before the first."""
        return self._spans[-1].version if self._spans else 0

    def completion(self, reason: FinishReason) -> Completion:
        """Return the response as it stands."""
        return Completion(self.request.id, self.tokens, self._log_probs, reason, self._spans)

    @property
    def _missing(self) -> int:
        return self._sampling.max_new_tokens - len(self.tokens)

    def _seed(self) -> int:
        """Seed of the next call. SGLang hashes it with the token's place, so that going on needs no other."""
        if self._padding_hits == 0:
            return self.request.seed
        return request_seed(self.request.seed, "after padding", self._padding_hits, 0, 0)

    def _must_bias(self) -> bool:
        greedy = self._sampling.temperature == 0.0  # would choose the same padding id for ever
        return bool(self._vocabulary.padding) and self._hits_here >= (1 if greedy else PADDING_TRIES)


def _shorten(spans: tuple[VersionSpan, ...]) -> tuple[VersionSpan, ...]:
    """Take one token off the end."""
    last = spans[-1]
    return (*spans[:-1], VersionSpan(last.version, last.tokens - 1))


def _join(first: tuple[VersionSpan, ...], second: tuple[VersionSpan, ...]) -> tuple[VersionSpan, ...]:
    """Append spans: equal neighbours become one, empty ones are left out."""
    joined: list[VersionSpan] = []
    for span in (*first, *second):
        if joined and (joined[-1].version == span.version or joined[-1].tokens == 0):
            before = joined.pop()
            span = VersionSpan(span.version, before.tokens + span.tokens)
        if span.tokens or not joined:
            joined.append(span)
    return tuple(joined)
