"""``megatron-srpo plan`` from the command line."""

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_srpo.cli import main

GIVEN = ["plan", "--model", "qwen3-8b", "--tensor", "2", "--pipeline", "2", "--context", "2", "--gpus", "16"]


def output(arguments: list[str], capsys: pytest.CaptureFixture[str], status: int = 0) -> str:
    assert main(arguments) == status
    return capsys.readouterr().out


def as_json(arguments: list[str], capsys: pytest.CaptureFixture[str], status: int = 0) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(output([*arguments, "--json"], capsys, status), parse_constant=refuse)


def test_a_given_layout_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    text = output([*GIVEN, "--server-tensor", "4"], capsys)
    for words in (
        "qwen3-8b: 8,190,735,360 parameters",
        "TP2 PP2 CP2 DP2 SP; servers TP4, colocated; 16 GPUs",
        "optimizer",
        "total at the fullest moment",
        "TP hidden states",
        "all-reduce",
        "weights to servers",
        "What the step's seconds depend on most:",
    ):
        assert words in text, words


def test_a_search_shows_the_best_and_why_others_fail(capsys: pytest.CaptureFixture[str]) -> None:
    text = output(["plan", "--model", "qwen3-8b", "--gpus", "16", "--keep", "2"], capsys)
    assert "layouts tried." in text and "Why others fail" in text and "x trainer's memory: TP" in text
    found = as_json(["plan", "--model", "qwen3-8b", "--gpus", "16", "--keep", "2"], capsys)
    assert len(found["search"]["plans"]) == 2
    assert found["plan"] == found["search"]["plans"][0]
    assert found["search"]["failures"][0]["count"] > 1


def test_json_holds_what_the_text_says(capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(GIVEN, capsys)
    assert found["problem"]["parameters"]["total"] == 8_190_735_360
    assert found["plan"]["layout"]["context"] == 2 and found["plan"]["layout"]["sequence"] is True
    parts = found["plan"]["memory"]
    assert parts["total"] == pytest.approx(sum(size for name, size in parts.items() if name != "total"))
    assert found["plan"]["seconds"] == pytest.approx(sum(found["plan"]["phases"].values()))
    assert found["search"] is None and found["curves"] == []


def test_nothing_fits_is_an_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    text = output(["plan", "--model", "qwen3-235b-a22b", "--gpus", "8"], capsys, status=1)
    assert "None fits." in text
    text = output(["plan", "--model", "qwen3-8b", "--data", "1"], capsys, status=1)
    assert "This layout does not work: stage 0 needs" in text
    found = as_json(["plan", "--model", "qwen3-8b", "--data", "1"], capsys, status=1)
    assert found["plan"] is None and found["obstacle"]["reason"] == "trainer's memory"


def test_the_scaling_curve_and_its_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "curve.svg"
    arguments = ["plan", "--model", "qwen3-8b", "--gpus", "16", "--scaling", "2048", "--plot", str(path)]
    text = output(arguments, capsys)
    assert path.exists() and f"curve: {path}" in text
    for mode in ("on-policy", "1-off", "4-off"):
        assert f"| {mode}" in text
    assert "2,048" in text
    fixed = as_json([*GIVEN, "--scaling", "1024", "--fixed-batch"], capsys)["curves"]
    assert len(fixed) == 1 and "prompts per optimizer step" in fixed[0]["ended"]


def test_published_numbers_stand_beside_predictions(capsys: pytest.CaptureFixture[str]) -> None:
    text = output([*GIVEN, "--check"], capsys)
    assert "GRPO on-policy, 32 H100" in text and "mean error" in text


def test_a_configuration_gives_batch_and_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        "model: {path: qwen3-8b, dtype: bfloat16}\n"
        "parallel: {tensor: 4}\n"
        "rollout: {engine: sglang, prompts_per_step: 64, samples_per_prompt: 4, max_response_tokens: 4096,\n"
        "  placement: colocated, sglang: {tensor_parallel: 2}}\n"
        "training: {prompts_per_mini_batch: 16}\n"
        "algorithm: {policy: {kl_coefficient: 0.1}}\n"
    )
    arguments = ["plan", "--config", str(config), "--pipeline", "2", "--gpus", "16", "teacher.mode=live"]
    found = as_json(arguments, capsys)
    work, layout = found["problem"]["workload"], found["plan"]["layout"]
    assert (work["prompts"], work["samples"], work["max_response_tokens"]) == (64, 4, 4096)
    assert (work["response_tokens"], work["optimizer_steps"], work["reference"]) == (2048, 4, True)
    assert work["teacher"] == "live" and found["plan"]["memory"]["teacher"] == 0
    assert (layout["tensor"], layout["pipeline"], layout["data"]) == (4, 2, 2)
    assert found["plan"]["engine"] == {"tensor": 2, "gpus": 16, "colocated": True}


def test_options_go_before_the_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*GIVEN, "--prompts", "64", "--response-tokens", "1000", "--max-response-tokens", "2000"]
    work = as_json([*arguments, "--distilled-share", "0.1", "--teacher", "frozen"], capsys)["problem"][
        "workload"
    ]
    assert (work["prompts"], work["response_tokens"], work["distilled_share"]) == (64, 1000, 0.1)
    assert work["teacher"] == "frozen" and work["teacher_prompt_tokens"] == 1512


def test_assumptions_can_be_changed(capsys: pytest.CaptureFixture[str]) -> None:
    usual = as_json(GIVEN, capsys)["plan"]["phases"]
    slow = as_json([*GIVEN, "--assume", "matmul", "0.1"], capsys)["plan"]["phases"]
    assert slow["update"] > 2 * usual["update"] and slow["rollout"] == usual["rollout"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan"], "no model: give --model"),
        (["plan", "--model", "qwen3-9b", "--gpus", "8"], "did you mean qwen3-"),
        (["plan", "--model", "qwen3-8b"], "no number of GPUs: give --gpus"),
        (["plan", "--model", "qwen3-8b", "--gpus", "8", "--gpu", "h1000"], "did you mean h100?"),
        ([*GIVEN, "--assume", "matmull", "1"], "did you mean matmul?"),
        ([*GIVEN, "--assume", "matmul", "fast"], "matmul = 'fast'; give a positive number"),
        ([*GIVEN, "--assume", "matmul", "-1"], "matmul = '-1'; give a positive number"),
        ([*GIVEN, "--data", "2", "--plot", "x.gif"], "ends in .svg, .png, .pdf"),
        ([*GIVEN, "--scaling", "8"], "--scaling 8 is below the plan's 16 GPUs"),
        ([*GIVEN, "--distilled-share", "1.5"], "share of 1.5 is not between 0 and 1"),
        ([*GIVEN, "--response-tokens", "9000"], "mean response of 9000 tokens does not fit"),
        ([*GIVEN, "--micro-batch-tokens", "100"], "raise --micro-batch-tokens"),
        ([*GIVEN[:-1], "12"], "12 GPUs that train cannot hold replicas of 8"),
        (["plan", "--config", "missing.yaml", "--gpus", "8"], "missing.yaml"),
    ],
)
def test_mistakes_are_answered(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("megatron-srpo: error: ")


def test_the_layout_of_a_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    """Where a layout is asked for, the rest of it is what the trainer's own configuration says."""
    options = ["plan", "--model", "qwen3-8b", "--gpus", "32", "--config", "examples/quickstart.yaml"]
    overrides = ["parallel.tensor=4", "parallel.pipeline=2", "parallel.context=2", "training.recompute=full"]
    layout = as_json([*options, "--pipeline", "1", *overrides], capsys)["plan"]["layout"]
    expected = {"tensor": 4, "pipeline": 1, "context": 2, "data": 4, "sequence": True, "recompute": "full"}
    assert expected.items() <= layout.items() and layout["distributed_optimizer"] is True
    overrides += ["parallel.sequence=false", "optimizer.distributed=false"]
    layout = as_json([*options, "--tensor", "2", *overrides], capsys)["plan"]["layout"]
    expected = {"tensor": 2, "pipeline": 2, "data": 4, "sequence": False, "distributed_optimizer": False}
    assert expected.items() <= layout.items()
    assert not layout["offload_optimizer"] and not layout["offload_teacher"]
    overrides += ["optimizer.offload=true", "teacher.offload=true"]
    layout = as_json([*options, "--tensor", "2", *overrides], capsys)["plan"]["layout"]
    assert layout["offload_optimizer"] and layout["offload_teacher"]
    layout = as_json([*options, "--tensor", "2", "--no-offload-teacher", *overrides], capsys)["plan"][
        "layout"
    ]
    assert layout["offload_optimizer"] and not layout["offload_teacher"]


def test_the_stages_and_the_precision_of_a_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["plan", "--model", "qwen3-8b", "--gpus", "32", "--config", "examples/quickstart.yaml"]
    overrides = ["parallel.virtual=2", "parallel.first_stage_layers=8", "parallel.last_stage_layers=8"]
    layout = as_json([*options, "--pipeline", "4", *overrides], capsys)["plan"]["layout"]
    stages = {"virtual_pipeline": 2, "first_stage_layers": 8, "last_stage_layers": 8}
    assert (stages | {"dtype": "float32", "kernels": "local"}).items() <= layout.items()
    overrides = ["model.dtype=bfloat16", "model.fp8=blockwise"]
    layout = as_json([*options, "--pipeline", "4", *overrides], capsys)["plan"]["layout"]
    assert {"dtype": "fp8", "kernels": "transformer_engine"}.items() <= layout.items()
