"""Chat rendering with a tokenizer of one token per byte, so that every length is known."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_srpo.data.chat import cut_user_text, limit_prompts, render_prompt
from megatron_srpo.errors import DataError
from tests.data.helpers import prompt
from tests.data.tokenizer import byte_tokenizer

USER = ({"role": "user", "content": "hello"},)
# <|im_start|> "user\n" <|im_end|> "\n" <|im_start|> "assistant\n" "<think>\n\n</think>\n\n"
FRAME = 1 + 5 + 1 + 1 + 1 + 10 + 19


def test_rendering_ends_where_the_assistant_begins() -> None:
    tokenizer = byte_tokenizer()
    thinking = tokenizer.decode(render_prompt(tokenizer, USER, thinking=True))
    assert thinking == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert (
        tokenizer.decode(render_prompt(tokenizer, USER, thinking=False))
        == thinking + "<think>\n\n</think>\n\n"
    )
    assert len(render_prompt(tokenizer, USER, thinking=False)) == FRAME + 5
    assert all(type(token) is int for token in render_prompt(tokenizer, USER, thinking=True))


def test_a_tokenizer_without_template_is_refused() -> None:
    import copy

    tokenizer = copy.copy(byte_tokenizer())
    tokenizer.chat_template = None
    with pytest.raises(DataError, match="no chat template"):
        render_prompt(tokenizer, USER, thinking=False)


def test_skip_leaves_long_prompts_out() -> None:
    prompts = [prompt(question="x" * length, id=str(length)) for length in (5, 6, 7)]
    kept, report = limit_prompts(prompts, byte_tokenizer(), False, FRAME + 6, "skip")
    assert [item.id for item in kept] == ["5", "6"]
    assert (report.kept, report.skipped, report.truncated) == (2, 1, 0)


def test_truncate_cuts_the_right_end_of_the_user_text() -> None:
    system = {"role": "system", "content": "S"}
    messages = (system, {"role": "user", "content": "abcdefgh"})
    long = prompt(messages=messages)
    limit = len(render_prompt(byte_tokenizer(), messages, False)) - 3
    kept, report = limit_prompts([long], byte_tokenizer(), False, limit, "truncate")
    assert kept[0].messages == (system, {"role": "user", "content": "abcde"})
    assert (report.kept, report.skipped, report.truncated) == (1, 0, 1)
    assert long.messages == messages


def test_truncate_cannot_cut_the_system_message() -> None:
    long = prompt(messages=({"role": "system", "content": "S" * 200}, {"role": "user", "content": "a"}))
    kept, report = limit_prompts([long, prompt()], byte_tokenizer(), False, 100, "truncate")
    assert (len(kept), report.skipped) == (1, 1)


def test_nothing_left_is_an_error() -> None:
    with pytest.raises(DataError, match=r"data.max_prompt_tokens = 5 "):
        limit_prompts([prompt()], byte_tokenizer(), False, 5, "skip")


@settings(deadline=None)
@given(st.text(alphabet="aé漢😀 \n", max_size=30), st.integers(0, 40))
def test_a_cut_text_is_a_prefix_within_the_limit(text: str, room: int) -> None:
    tokenizer = byte_tokenizer()
    messages = ({"role": "user", "content": text},)
    cut = cut_user_text(tokenizer, messages, False, FRAME + room)
    assert cut is not None
    kept = cut[-1]["content"]
    assert text.startswith(kept)
    assert len(kept.encode()) <= room
    # As much as possible: one more character would not fit. (A character is never split.)
    if kept != text:
        assert len(text[: len(kept) + 1].encode()) > room


def test_the_carried_model_renders_as_qwen3_does() -> None:
    from pathlib import Path

    from transformers import AutoTokenizer

    folder = Path(__file__).resolve().parents[2] / "examples" / "models" / "qwen3-tiny"
    if not (folder / "tokenizer_config.json").is_file():
        pytest.skip("examples/models/qwen3-tiny has not been made")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = ({"role": "system", "content": "S"}, {"role": "user", "content": "What is 12+30? 漢"})
    system = "<|im_start|>system\nS<|im_end|>\n"
    frame = system + "<|im_start|>user\nWhat is 12+30? 漢<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(render_prompt(tokenizer, chat, thinking=True)) == frame
    assert (
        tokenizer.decode(render_prompt(tokenizer, chat, thinking=False)) == frame + "<think>\n\n</think>\n\n"
    )
    limit = len(render_prompt(tokenizer, chat, False)) - 3
    cut = cut_user_text(tokenizer, chat, False, limit)
    assert cut is not None
    assert len(render_prompt(tokenizer, cut, False)) <= limit
    assert chat[1]["content"].startswith(cut[1]["content"])
