"""Chat messages as token ids, through the tokenizer's own chat template."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from megatron_srpo.data.types import Prompt
from megatron_srpo.errors import DataError

Messages = Sequence[dict[str, str]]


class ChatTokenizer(Protocol):
    """The part of a transformers tokenizer that is used here."""

    chat_template: Any

    def apply_chat_template(self, conversation: list[dict[str, str]], **options: Any) -> Any: ...

    def encode(self, text: str, **options: Any) -> list[int]: ...

    def decode(self, token_ids: list[int], **options: Any) -> Any: ...


@dataclass(frozen=True)
class LengthReport:
    """How many prompts were within the limit, left out, or cut."""

    kept: int
    skipped: int
    truncated: int


def render_prompt(tokenizer: ChatTokenizer, messages: Messages, thinking: bool) -> list[int]:
    """Return the token ids of a chat up to where the assistant begins to write.

    Args:
        tokenizer: a transformers tokenizer with a chat template.
        messages: chat messages with ``role`` and ``content``.
        thinking: the template's ``enable_thinking``; Qwen3 writes an empty think block when it is False.

    Raises:
        DataError: the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise DataError(
            "the tokenizer has no chat template; use a model folder whose tokenizer_config.json has one"
        )
    rendered = tokenizer.apply_chat_template(
        [dict(message) for message in messages],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=False,
        enable_thinking=thinking,
    )
    return [int(token) for token in rendered]


def decode_response(tokenizer: ChatTokenizer, tokens: Sequence[int]) -> str:
    """Return the text of a response as verifiers see it: without special tokens, thoughts included."""
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True))


def limit_prompts(
    prompts: Iterable[Prompt], tokenizer: ChatTokenizer, thinking: bool, max_tokens: int, policy: str
) -> tuple[list[Prompt], LengthReport]:
    """Bring a prompt set within ``max_tokens``.

    Args:
        policy: "skip" leaves longer prompts out; "truncate" cuts the right end of their last user text.

    Raises:
        DataError: nothing remains.
    """
    kept: list[Prompt] = []
    skipped = truncated = 0
    for prompt in prompts:
        if len(render_prompt(tokenizer, prompt.messages, thinking)) <= max_tokens:
            kept.append(prompt)
            continue
        messages = None
        if policy == "truncate":
            messages = cut_user_text(tokenizer, prompt.messages, thinking, max_tokens)
        if messages is None:
            skipped += 1
        else:
            truncated += 1
            kept.append(replace(prompt, messages=messages))
    if not kept:
        raise DataError(
            f"no prompt is within data.max_prompt_tokens = {max_tokens} ({skipped} are longer); raise it"
        )
    return kept, LengthReport(len(kept), skipped, truncated)


def cut_user_text(
    tokenizer: ChatTokenizer, messages: Messages, thinking: bool, max_tokens: int
) -> tuple[dict[str, str], ...] | None:
    """Cut the right end of the last message's text until the rendered chat has at most ``max_tokens`` tokens.

    Returns:
        The messages, unchanged when they fit; None when even an empty text would be too long.
    """

    def with_text(text: str) -> tuple[dict[str, str], ...]:
        return (*messages[:-1], {**messages[-1], "content": text})

    def excess(text: str) -> int:
        return len(render_prompt(tokenizer, with_text(text), thinking)) - max_tokens

    text = messages[-1]["content"]
    if excess(text) <= 0:
        return tuple(messages)
    if excess("") > 0:
        return None
    return with_text(_shorten(tokenizer, text, excess))


def _shorten(tokenizer: ChatTokenizer, text: str, excess: Callable[[str], int]) -> str:
    """Drop tokens at the right end of ``text`` until ``excess(text) <= 0``; ``excess("")`` must be <= 0."""
    tokens = list(tokenizer.encode(text, add_special_tokens=False))
    over = excess(text)
    while over > 0 and tokens:
        # Tokens at the seams may merge differently once the text is cut, so the count is taken again.
        tokens = tokens[: max(0, len(tokens) - over)]
        text = str(tokenizer.decode(tokens, skip_special_tokens=False)).rstrip("\ufffd")
        over = excess(text)
    return text if over <= 0 else ""
