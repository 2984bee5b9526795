"""Files of prompts: what is read, and every reason for which a row or a file is refused."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_srpo.config.data import SourceConfig
from megatron_srpo.data.reports import BadRows, LoadReport
from megatron_srpo.data.rows import read_file
from megatron_srpo.data.types import Prompt
from megatron_srpo.errors import DataError
from tests.data.helpers import write_jsonl


def source(path: Path, **fields: Any) -> SourceConfig:
    kind = "parquet" if path.suffix == ".parquet" else "jsonl"
    return SourceConfig(kind=kind, path=str(path), **{"task": "math", **fields})


def read(path: Path, policy: str = "refuse", **fields: Any) -> tuple[list[Prompt], LoadReport]:
    report = LoadReport("set")
    return read_file(source(path, **fields), BadRows(policy, report)), report


def one_row(tmp_path: Path, row: Any, **fields: Any) -> Prompt:
    prompts, _ = read(write_jsonl(tmp_path / "set.jsonl", [row]), **fields)
    return prompts[0]


def test_a_plain_row(tmp_path: Path) -> None:
    prompt = one_row(tmp_path, {"prompt": "1+1?", "answer": "2"})
    assert prompt.id == "set/1"
    assert prompt.messages == ({"role": "user", "content": "1+1?"},)
    assert (prompt.answer, prompt.task, prompt.source) == ("2", "math", "set")
    assert prompt.question == "1+1?"


def test_columns_system_suffix_and_metadata(tmp_path: Path) -> None:
    row = {"q": "1+1?", "a": {"gold": 27.0}, "sys": "Be brief.", "key": "k7", "level": 3}
    prompt = one_row(
        tmp_path,
        row,
        name="sums",
        prompt_column="q",
        answer_column="a.gold",
        system_column="sys",
        id_column="key",
        metadata_columns=("level",),
        prompt_suffix=" Think.",
    )
    assert prompt.id == "sums/k7"
    assert prompt.messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1+1? Think."},
    )
    assert prompt.answer == "27"
    assert prompt.metadata == {"level": 3, "question": "1+1?"}


def test_a_column_whose_name_holds_a_dot_comes_first(tmp_path: Path) -> None:
    row = {"prompt": "q", "a.b": "1", "a": {"b": "2"}}
    assert one_row(tmp_path, row, answer_column="a.b").answer == "1"


def test_system_message_of_the_source_gives_way_to_the_row(tmp_path: Path) -> None:
    row = {"prompt": "q", "answer": "1", "sys": None}
    assert one_row(tmp_path, row, system="S").messages[0] == {"role": "system", "content": "S"}
    assert one_row(tmp_path, row, system="S", system_column="sys").messages[0]["content"] == "S"
    chat = [{"role": "system", "content": "own"}, {"role": "user", "content": "q"}]
    messages = one_row(tmp_path, {"prompt": chat, "answer": "1"}, system="S").messages
    assert [message["content"] for message in messages] == ["own", "q"]


def test_chat_messages_keep_their_turns(tmp_path: Path) -> None:
    chat = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    prompt = one_row(tmp_path, {"prompt": chat, "answer": "1"}, prompt_suffix="!")
    assert [message["content"] for message in prompt.messages] == ["a", "b", "c!"]


@pytest.mark.parametrize(
    ("value", "text"),
    [("x ", "x"), (5, "5"), (2.5, "2.5"), (145.0, "145"), ([{"Action": "f"}], '[{"Action": "f"}]')],
)
def test_answers_become_text(tmp_path: Path, value: Any, text: str) -> None:
    assert one_row(tmp_path, {"prompt": "q", "answer": value}).answer == text


def test_answer_pattern_takes_the_first_group(tmp_path: Path) -> None:
    row = {"prompt": "q", "answer": "9 * 2 = 18 every day.\n#### 1,018 "}
    assert one_row(tmp_path, row, answer_pattern="#### (.+)").answer == "1,018"


def test_no_answer_column_for_a_verifier_of_your_own(tmp_path: Path) -> None:
    assert one_row(tmp_path, {"prompt": "q"}, answer_column=None, task="my.module:check").answer is None


BAD_ROWS = [
    ("{broken", {}, "not JSON"),
    ("[1, 2]", {}, "a JSON object was expected, found a list"),
    ("[" * 100_000, {}, "not JSON"),
    ({"promt": "q", "answer": "1"}, {}, "no column 'prompt' among 'promt', 'answer'; did you mean 'promt'"),
    ({"prompt": "q"}, {}, "no column 'answer'"),
    ({"prompt": "  ", "answer": "1"}, {}, "column 'prompt' is empty"),
    ({"prompt": 3, "answer": "1"}, {}, "column 'prompt' holds a int"),
    ({"prompt": "q", "answer": None}, {}, "column 'answer' holds None"),
    ({"prompt": "q", "answer": True}, {}, "column 'answer' holds True"),
    ({"prompt": "q", "answer": ""}, {}, "column 'answer' holds ''"),
    ({"prompt": "q", "answer": "1"}, {"answer_column": None}, "needs a gold answer"),
    ({"prompt": "q", "answer": "1"}, {"answer_pattern": "#### (.+)"}, "finds nothing in '1'"),
    ({"prompt": "q", "answer": "1"}, {"answer_column": "answer.gold"}, "no column 'answer.gold'"),
    ({"prompt": "q", "answer": "1", "s": 4}, {"system_column": "s"}, "column 's' holds a int"),
    ({"prompt": "q", "answer": "1"}, {"metadata_columns": ("level",)}, "no column 'level'"),
    ({"prompt": [], "answer": "1"}, {}, "last chat message must be a user's"),
    ({"prompt": [{"role": "assistant", "content": "x"}], "answer": "1"}, {}, "last chat message must be"),
    ({"prompt": [{"role": "robot", "content": "x"}], "answer": "1"}, {}, "unknown role 'robot'"),
    ({"prompt": [{"role": "user"}], "answer": "1"}, {}, "needs 'role' and a text 'content'"),
    ({"prompt": ["hello"], "answer": "1"}, {}, "needs 'role' and a text 'content'"),
]


@pytest.mark.parametrize(("row", "fields", "reason"), BAD_ROWS, ids=[reason for _, _, reason in BAD_ROWS])
def test_bad_rows_are_skipped_with_place_and_reason_or_refused(
    tmp_path: Path, row: Any, fields: dict[str, Any], reason: str
) -> None:
    path = write_jsonl(tmp_path / "set.jsonl", ["", row])
    prompts, report = read(path, "skip", **fields)
    assert (prompts, report.bad) == ([], 1)
    assert report.examples[0].startswith(f"{path}:2: ")
    assert reason in report.examples[0]
    with pytest.raises(DataError, match=r"set.jsonl:2: .*data.on_bad_row=skip"):
        read(path, "refuse", **fields)


def test_good_rows_around_a_bad_one_are_kept(tmp_path: Path) -> None:
    good = {"prompt": "q", "answer": "1"}
    prompts, report = read(write_jsonl(tmp_path / "set.jsonl", [good, "{", good]), "skip")
    assert [prompt.id for prompt in prompts] == ["set/1", "set/3"]
    assert report.bad == 1


def test_repeated_ids_are_bad(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "answer": "1", "id": 7}, {"prompt": "b", "answer": "1", "id": 7}]
    prompts, report = read(write_jsonl(tmp_path / "set.jsonl", rows), "skip", id_column="id")
    assert len(prompts) == 1
    assert "id 'set/7' occurs twice" in report.examples[0]


def test_text_that_is_not_utf8_is_a_bad_row_and_a_byte_order_mark_is_not(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    good = json.dumps({"prompt": "q", "answer": "1"}).encode()
    path.write_bytes(b"\xef\xbb\xbf" + good + b"\n\xff\xfe\n")
    prompts, report = read(path, "skip")
    assert len(prompts) == 1
    assert ":2: not JSON" in report.examples[0]


def test_only_ten_examples_are_kept(tmp_path: Path) -> None:
    _, report = read(write_jsonl(tmp_path / "set.jsonl", ["{"] * 25), "skip")
    assert (report.bad, len(report.examples)) == (25, 10)


def test_limit_counts_usable_rows(tmp_path: Path) -> None:
    rows = ["{", *({"prompt": str(index), "answer": "1"} for index in range(5))]
    prompts, _ = read(write_jsonl(tmp_path / "set.jsonl", rows), "skip", limit=2)
    assert [prompt.question for prompt in prompts] == ["0", "1"]


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "gsm8k_train.jsonl", [])
    with pytest.raises(DataError, match=r"does not exist; did you mean .*gsm8k_train.jsonl"):
        read(tmp_path / "gsm8k_trian.jsonl")
    with pytest.raises(DataError, match=r"the folder .* does not exist either"):
        read(tmp_path / "nowhere" / "x.jsonl")


def test_parquet_in_the_form_prepared_for_verl(tmp_path: Path) -> None:
    rows = [
        {
            "data_source": "gsm8k",
            "prompt": [{"role": "user", "content": f"question {index}"}],
            "reward_model": {"ground_truth": str(index), "style": "rule"},
            "extra_info": {"index": index},
        }
        for index in range(2500)
    ]
    path = tmp_path / "train.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=700)
    prompts, report = read(
        path,
        answer_column="reward_model.ground_truth",
        id_column="extra_info.index",
        metadata_columns=("data_source",),
    )
    assert report.bad == 0
    assert [prompt.id for prompt in prompts] == [f"train/{index}" for index in range(2500)]
    assert prompts[2499].answer == "2499"
    assert prompts[3].metadata["data_source"] == "gsm8k"


def test_parquet_rows_may_be_bad_too(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"prompt": ["a", None], "answer": [1.0, 2.0]}), path)
    prompts, report = read(path, "skip")
    assert [prompt.answer for prompt in prompts] == ["1"]
    assert report.examples[0].startswith(f"{path}:2: column 'prompt' holds a NoneType")


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    path.write_text("not parquet at all")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read(path)


def test_gsm8k_loads_whole(shared_data: Path) -> None:
    path = shared_data / "math/gsm8k_train.jsonl"
    prompts, report = read(path, prompt_column="question", answer_pattern="#### (.+)")
    assert (len(prompts), report.bad) == (7473, 0)
    assert prompts[0].answer == "72"
    assert all(prompt.answer and prompt.answer.replace(",", "").lstrip("-").isdigit() for prompt in prompts)


def test_sciknoweval_loads_whole(shared_data: Path) -> None:
    path = shared_data / "sciknoweval/chemistry/train.jsonl"
    prompts, report = read(path, task="multiple_choice", system_column="system")
    assert (len(prompts), report.bad) == (1890, 0)
    assert {prompt.answer for prompt in prompts} == {"A", "B", "C", "D"}
    assert all(prompt.messages[0]["role"] == "system" for prompt in prompts)
