"""The coder model through the real local engine; a lost server is started again."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from megatron_srpo.config.self_play import CoderConfig
from megatron_srpo.errors import ModelError
from megatron_srpo.rollout.engine import EngineLost
from megatron_srpo.selfplay.skill import prompt
from megatron_srpo.selfplay.skill.coder import EngineCoder
from megatron_srpo.selfplay.skill.embedder import HashingEmbedder
from megatron_srpo.selfplay.skill.measure import SkillMeasurement
from megatron_srpo.session import frozen
from tests.selfplay.skill.coders import CODE, write_coder, write_random_coder
from tests.selfplay.skill.needs import require_hashing

QUESTIONS = ["What is 3 + 4?", "Anna has 3 apples and buys 4 more. How many?"]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that writes a fenced function."""
    return write_coder(tmp_path_factory.mktemp("good"), "```python\n", CODE + "  # the sum\n", "```")


def coder(folder: Path, logs: Path, said: list[str] | None = None, **settings: Any) -> EngineCoder:
    limits: dict[str, Any] = {"max_prompt_tokens": 4096, "max_code_tokens": 64} | settings
    config = CoderConfig(path=str(folder), engine="local", dtype="float32", **limits)
    return EngineCoder(config, logs, [].append if said is None else said.append)


def test_code_comes_back_in_standard_form(good: Path, tmp_path: Path) -> None:
    said: list[str] = []
    ours = coder(good, tmp_path, said)
    assert said == []  # nothing is started before the first question
    assert [found.code for found in ours.rewrite(QUESTIONS)] == [CODE, CODE]
    assert len(said) == 1 and str(good) in said[0]
    assert ours.embedded(CODE) == CODE
    ours.close()
    ours.close()
    assert ours.rewrite(QUESTIONS[:1])[0].code == CODE
    ours.close()


def test_what_a_random_model_writes_is_unparsed(tmp_path: Path) -> None:
    found = coder(write_random_coder(tmp_path / "model"), tmp_path).rewrite(QUESTIONS)
    assert [one.code for one in found] == [None, None]
    assert all(one.reason for one in found)


def test_what_is_too_long_is_unparsed(tmp_path: Path, good: Path) -> None:
    short = coder(good, tmp_path, max_prompt_tokens=2500)
    one, other = short.rewrite([QUESTIONS[0], "why? " * 400])
    assert one.code == CODE
    assert other.code is None and other.reason == "the question is longer than 2500 tokens"
    assert short.rewrite(["why? " * 400])[0].code is None
    endless = coder(write_coder(tmp_path / "endless", "a + ", ends=False), tmp_path)
    assert endless.rewrite(QUESTIONS[:1])[0].reason == "the answer is longer than 64 tokens"


def test_it_is_asked_greedily_in_its_own_template(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = coder(good, tmp_path)
    seen: list[Any] = []
    real = frozen.FrozenModel.sample

    def watched(model: frozen.FrozenModel, requests: Any, params: Any) -> Any:
        seen.append((model.tokenizer.decode(requests[0].prompt_tokens), params))
        return real(model, requests, params)

    monkeypatch.setattr(frozen.FrozenModel, "sample", watched)
    ours.rewrite(QUESTIONS[:1])
    ((text, params),) = seen
    assert params.temperature == 0 and params.max_new_tokens == 64
    assert text.startswith(f"<|im_start|>system\n{prompt.SYSTEM}<|im_end|>")
    assert text.endswith(f"Question:\n{QUESTIONS[0]}<|im_end|>\n<|im_start|>assistant\n")
    assert text.count(prompt.RULES) == 2 and prompt.EXAMPLE_CODE in text


@pytest.mark.parametrize("losses", [1, 2, 3])
def test_an_engine_that_is_lost_is_opened_again(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, losses: int
) -> None:
    real, opened = frozen.engine_alone, []

    class Lost:
        def generate(self, *arguments: Any) -> None:
            raise EngineLost("nobody answers")

    @contextmanager
    def failing(*arguments: Any) -> Iterator[Any]:
        opened.append(1)
        with real(*arguments) as engine:
            yield Lost() if len(opened) <= losses else engine

    monkeypatch.setattr(frozen, "engine_alone", failing)
    ours = coder(good, tmp_path)
    if losses < 3:
        assert ours.rewrite(QUESTIONS[:1])[0].code == CODE
        assert len(opened) == losses + 1
    else:
        with pytest.raises(EngineLost, match="nobody answers"):
            ours.rewrite(QUESTIONS[:1])


def test_the_name_says_what_decides_the_code(good: Path, tmp_path: Path) -> None:
    other = write_coder(tmp_path / good.name, "```python\n", CODE + "\n", "```")
    names = [
        coder(good, tmp_path).name,
        coder(other, tmp_path).name,
        coder(good, tmp_path, max_code_tokens=65).name,
    ]
    assert len(set(names)) == 3 and all(name.startswith(good.name) for name in names)
    assert coder(good, tmp_path / "elsewhere").name == names[0]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is no folder; download the coder model, or set skill.coder.kind"):
        coder(tmp_path / "absent", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="holds no model files"):
        coder(tmp_path / "empty", tmp_path)


def test_with_everything_cached_no_engine_starts(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_hashing()
    first = SkillMeasurement(coder(good, tmp_path), HashingEmbedder(), tmp_path / "skills")
    skills = first.measure(QUESTIONS)
    assert [skill.parsed for skill in skills] == [True, True] and skills[0].code == CODE
    monkeypatch.setattr(frozen, "engine_alone", None)
    again = SkillMeasurement(coder(good, tmp_path), HashingEmbedder(), tmp_path / "skills")
    assert [skill.code for skill in again.measure(QUESTIONS)] == [CODE, CODE]
