"""Reading a run folder back, whole, partial or damaged."""

from pathlib import Path

import pytest
import yaml

from megatron_srpo.errors import DataError
from megatron_srpo.report.metrics import MetricsFile
from megatron_srpo.report.run_data import best, flatten, load_run, training_seconds
from tests.report.synthetic import row, write_run


def test_a_whole_run(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "srpo-seed3", steps=12, evaluate_every=5, seed=3))
    assert run.name == "srpo-seed3"
    assert run.notes == ()
    assert run.config["seed"] == 3
    assert run.series("eval/accuracy")[0] == [0, 5, 10]
    steps, values = run.series("optim/grad_norm")
    assert steps == list(range(1, 13))
    assert values[4] == row(5, seed=3, total=12)["optim/grad_norm"]
    assert run.names_between("eval/", "/accuracy") == ["chain_sum", "gcd", "lcm"]
    assert run.names_between("reward/", "/accuracy") == ["chain_sum", "gcd", "lcm"]
    assert run.series("no/such") == ([], [])


def test_names_between_do_not_take_the_overall_metric(tmp_path: Path) -> None:
    MetricsFile(tmp_path / "metrics.jsonl").append(
        {"step": 1, "eval/accuracy": 0.5, "eval/a/b/accuracy": 0.5}
    )
    assert load_run(tmp_path).names_between("eval/", "/accuracy") == ["a/b"]


def test_null_metrics_are_not_there(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.append({"step": 1, "loss/total": None, "reward/mean": 1.0})
    file.append({"step": 2, "loss/total": None, "reward/mean": None})
    run = load_run(tmp_path)
    assert run.metrics() == ["reward/mean", "step"]
    assert run.series("reward/mean") == ([1], [1.0])


def test_a_folder_without_anything_is_noted(tmp_path: Path) -> None:
    run = load_run(tmp_path)
    assert list(run.rows) == [] and run.warnings() == []
    assert any("config.yaml" in note for note in run.notes)
    assert any("no step has finished yet" in note for note in run.notes)


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere is not a folder; give the folder of a run"):
        load_run(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["a: [1, 2", "- a list", "\x00"])
def test_a_broken_config_is_a_note(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    run = load_run(tmp_path)
    assert run.config == {}
    assert run.notes[0].startswith("No configuration shown: ")


def test_the_thresholds_of_the_run_decide_its_warnings(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    for step in range(1, 9):
        file.append({"step": step, "response/truncated_share": 0.3})
    assert load_run(tmp_path).warnings() == []
    strict = {"report": {"watch": {"truncated_share": 0.2, "window": 3}}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(strict))
    assert [(w.step, w.rule) for w in load_run(tmp_path).warnings()] == [(3, "truncated_responses")]


@pytest.mark.parametrize(
    "section", [{"report": {"watch": {"gone": 1}}}, {"report": 3}, {"report": {"watch": "x"}}]
)
def test_thresholds_of_another_version_fall_back_to_the_defaults(
    tmp_path: Path, section: dict[str, object]
) -> None:
    run = load_run(write_run(tmp_path, steps=6))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(section))
    assert load_run(tmp_path).warnings() == run.warnings() == []


def test_the_row_of_step_zero_is_no_training_step(tmp_path: Path) -> None:
    """The loop writes ``time/step`` 0.0 with the evaluation before training."""
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.append({"step": 0, "time/step": 0.0, "time/evaluate": 7.0})
    file.append({"step": 1, "time/step": 4.0})
    file.append({"step": 2})
    assert load_run(tmp_path).step_seconds() == ([1], [4.0])


def test_flatten() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {"a.b": 1, "a.c.d": [2], "e": None}


def test_best_is_the_earliest_of_equals() -> None:
    assert best([0, 5, 10, 15], [0.1, 0.7, 0.7, 0.2]) == (5, 0.7)
    assert best([], []) is None


def test_training_seconds() -> None:
    assert training_seconds({"step": 1, "time/step": 2.5, "time/evaluate": 9.0}) == 2.5
    assert training_seconds({"step": 0, "time/evaluate": 9.0}) == 0.0
