from pathlib import Path
from typing import Any

import pytest

from megatron_srpo.config.data import DataConfig, SourceConfig
from megatron_srpo.data.reports import LoadReport
from megatron_srpo.data.sources import (
    drop_overlap,
    load_prompts,
    load_source,
    mixture_weights,
    question_key,
)
from megatron_srpo.errors import DataError
from tests.data.helpers import prompt, write_jsonl


def file_source(path: Path, **fields: Any) -> SourceConfig:
    return SourceConfig(kind="jsonl", path=str(path), task="exact", **fields)


def rows(*questions: str) -> list[dict[str, str]]:
    return [{"prompt": question, "answer": "1"} for question in questions]


def gym(**fields: Any) -> SourceConfig:
    return SourceConfig(kind="reasoning_gym", **{"family": "gcd", **fields})


def test_training_and_evaluation_are_kept_apart_whatever_the_suffix(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", rows("a", "b  c", "d"))
    held_out = write_jsonl(tmp_path / "test.jsonl", rows("b c ", "e"))
    config = DataConfig(train=(file_source(train, prompt_suffix=" Think."),), eval=(file_source(held_out),))
    sets = load_prompts(config)
    assert [item.question for item in sets.train] == ["a Think.", "d Think."]
    assert [item.question for item in sets.eval["test"]] == ["b c ", "e"]
    assert [(report.source, report.kept, report.overlap) for report in sets.reports] == [
        ("train", 2, 1),
        ("test", 2, 0),
    ]


def test_a_small_family_is_split_by_text() -> None:
    # 81 different pairs in all: seeds alone would leave nearly every evaluation question in the training set.
    options = {"min_value": 1, "max_value": 9}
    train, evaluation = gym(size=200, config=options), gym(size=20, seed=1, config=options, name="held_out")
    sets = load_prompts(DataConfig(train=(train,), eval=(evaluation,)))
    asked = {question_key(item) for item in sets.eval["held_out"]}
    assert len(asked) == 20
    assert sets.reports[0].overlap > 0
    assert not asked & {question_key(item) for item in sets.train}


def test_a_training_source_used_up_by_evaluation_is_an_error() -> None:
    with pytest.raises(DataError, match="source 'gcd': all 5 training prompts are also evaluation prompts"):
        load_prompts(DataConfig(train=(gym(size=5),), eval=(gym(size=5, name="same"),)))


def test_a_source_without_usable_rows_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"source 'x' has no usable row \(1 bad; the first: .*x.jsonl:1: not JSON"
    ):
        load_source(file_source(write_jsonl(tmp_path / "x.jsonl", ["{"])), "skip")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(DataError, match=r"source 'empty' has no usable row \(0 bad\)"):
        load_source(file_source(empty), "refuse")


def test_sources_come_in_order_with_their_reports(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "own.jsonl", [*rows("a"), "{"])
    config = DataConfig(train=(gym(size=3), file_source(path)), on_bad_row="skip")
    sets = load_prompts(config)
    assert [item.source for item in sets.train] == ["gcd"] * 3 + ["own"]
    assert sets.eval == {}
    assert "1 bad rows" in sets.reports[1].summary()
    assert "own.jsonl:2" in sets.reports[1].summary()


def test_summary_of_a_clean_source_is_short() -> None:
    assert LoadReport("gcd", kept=7).summary() == "gcd: 7 prompts"
    assert LoadReport("gcd", kept=7, missing=3, duplicates=2).summary() == (
        "gcd: 7 prompts (2 repeated questions, 3 fewer than asked for)"
    )


def test_drop_overlap_keeps_order_and_counts() -> None:
    train = [prompt(question=text) for text in "abcab"]
    kept, dropped = drop_overlap(train, [prompt(question="b")])
    assert ([item.question for item in kept], dropped) == (["a", "c", "a"], 2)


def test_mixture_weights() -> None:
    assert mixture_weights(DataConfig(train=(gym(),))) is None
    config = DataConfig(train=(gym(weight=1.0), gym(name="b", weight=0.0)))
    assert mixture_weights(config) == {"gcd": 1.0, "b": 0.0}


def test_a_source_of_weight_zero_does_not_break_sampling() -> None:
    from megatron_srpo.data.sampler import PromptSampler

    config = DataConfig(train=(gym(weight=1.0, size=5), gym(name="b", seed=1, weight=0.0, size=5)))
    sampler = PromptSampler(load_prompts(config).train, 0, weights=mixture_weights(config))
    assert {item.source for item in sampler.batch(0, 10)} == {"gcd"}
