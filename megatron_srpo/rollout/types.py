"""What travels between the training loop and a rollout engine: requests, sampling parameters, completions."""

from dataclasses import dataclass
from typing import Literal

from megatron_srpo.errors import EngineError

FinishReason = Literal["stop", "length", "abort"]

#: Seeds are non-negative and fit a signed 64-bit integer, so that they survive torch, JSON and HTTP alike.
MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn; one set per call of :meth:`RolloutEngine.generate`.

    Attributes:
        temperature: divides the logits; 0 means greedy.
        top_p: nucleus mass in (0, 1]; 1 samples from the whole distribution.
        max_new_tokens: most tokens of a response, end-of-sequence token included.

    Raises:
        EngineError: a value outside its range.
    """

    temperature: float
    top_p: float
    max_new_tokens: int

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < float("inf"):
            raise EngineError(
                f"temperature = {self.temperature}; give a finite number of at least 0 (0 is greedy)"
            )
        if not 0.0 < self.top_p <= 1.0:
            raise EngineError(f"top_p = {self.top_p}; give a number above 0 and at most 1")
        if self.max_new_tokens < 1:
            raise EngineError(f"max_new_tokens = {self.max_new_tokens}; give at least 1")


@dataclass(frozen=True)
class Request:
    """One response to be sampled.

    Attributes:
        id: unique within a call; the completion carries it back.
        prompt_tokens: token ids, chat template already applied.
        seed: decides the sampled tokens (see :mod:`megatron_srpo.rollout.seeds`), 0 to 2**63 - 1.
    """

    id: str
    prompt_tokens: tuple[int, ...]
    seed: int

    def __post_init__(self) -> None:
        if not 0 <= self.seed <= MAX_SEED:
            raise EngineError(f"request {self.id!r}: seed = {self.seed}; give an integer from 0 to 2**63 - 1")


@dataclass(frozen=True)
class VersionSpan:
    """A run of response tokens sampled by the same weights.

    Attributes:
        version: version of the weights, 0 for those that the engine loaded first.
        tokens: length of the run.
    """

    version: int
    tokens: int


@dataclass(frozen=True)
class Completion:
    """One sampled response.

    Attributes:
        request_id: the request that it answers.
        tokens: sampled token ids, the end-of-sequence token included when one was sampled.
        log_probs: per token, natural logarithm of its probability under the temperature-scaled
            distribution over the model's whole ``config.vocab_size``, *not* renormalised for top-p; at
            temperature 0, under the unscaled distribution. SGLang reports the same number.
        finish_reason: "stop" (end of sequence), "length" (``max_new_tokens`` reached) or "abort".
        version_spans: which weights sampled which tokens, in order. More than one where the weights changed
            while the response was being sampled.

    Raises:
        EngineError: spans that do not cover the tokens, or whose versions fall.
    """

    request_id: str
    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    finish_reason: FinishReason
    version_spans: tuple[VersionSpan, ...]

    def __post_init__(self) -> None:
        covered = sum(span.tokens for span in self.version_spans)
        if not self.version_spans or covered != len(self.tokens):
            raise EngineError(
                f"request {self.request_id!r}: version spans cover {covered} of {len(self.tokens)} tokens"
            )
        versions = [span.version for span in self.version_spans]
        if versions != sorted(versions):
            raise EngineError(f"request {self.request_id!r}: weight versions fall: {versions}")

    @property
    def weight_version(self) -> int:
        """Version of the oldest weights that sampled any token: what staleness is judged by."""
        return self.version_spans[0].version
