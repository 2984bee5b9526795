"""The token ids that an engine may be given and may sample."""

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_srpo.errors import EngineError
from megatron_srpo.rollout.types import Request


@dataclass(frozen=True)
class Vocabulary:
    """Token ids of the model.

    Attributes:
        size: rows of the output head, ``config.vocab_size``.
        limit: ids in use, the tokenizer's length; the ids from here to ``size`` are padding.
        stop_tokens: ids that end a response.

    Raises:
        EngineError: the limit or a stop token is out of range.
    """

    size: int
    limit: int
    stop_tokens: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 1 <= self.limit <= self.size:
            raise EngineError(
                f"vocab_limit = {self.limit}; give 1 to {self.size}, the model's vocabulary size"
            )
        if any(not 0 <= stop < self.limit for stop in self.stop_tokens):
            raise EngineError(
                f"stop tokens {self.stop_tokens} are not all among the {self.limit} token ids that can be "
                "sampled"
            )

    @classmethod
    def of(cls, size: int, limit: int | None, stop_tokens: Sequence[int]) -> "Vocabulary":
        """Make one; by default all ids are in use."""
        return cls(size, size if limit is None else limit, tuple(stop_tokens))

    @property
    def padding(self) -> range:
        """Ids that must not be sampled."""
        return range(self.limit, self.size)

    def check_prompt(self, request: Request) -> None:
        """Refuse a prompt that is empty or holds ids that the model does not have.

        Raises:
            EngineError: names the request and the ids.
        """
        prompt = request.prompt_tokens
        if not prompt:
            raise EngineError(f"request {request.id!r} has an empty prompt; give at least one token")
        if min(prompt) < 0 or max(prompt) >= self.size:
            raise EngineError(
                f"request {request.id!r} holds token ids {min(prompt)} to {max(prompt)}; the model knows "
                f"0 to {self.size - 1} (does the tokenizer belong to the model?)"
            )
