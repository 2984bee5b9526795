"""``eval``: Hugging Face folders and Megatron checkpoints, benchmarks, interruption, results."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from megatron_srpo.cli import main
from megatron_srpo.rewards.pool import RewardPool
from megatron_srpo.session import measure

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "examples" / "models" / "qwen3-tiny"
GIVEN = ["eval", "--config", str(ROOT / "examples" / "quickstart.yaml")]

SMALL = [
    f"model.path={MODEL}",
    "data.eval=[{kind: reasoning_gym, family: gcd, seed: 9, size: 3, "
    "config: {min_numbers: 2, max_numbers: 2, min_value: 1, max_value: 60}}]",
    "evaluation.samples_per_prompt=2",
    "evaluation.max_response_tokens=4",
    "reward.workers=0",
]
SHORT = ["evaluation.samples_per_prompt=2", "rollout.max_response_tokens=8", "reward.workers=1"]


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "evaluation.json").read_text())


def responses(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "responses.jsonl").read_text().splitlines()]


def benchmark_command(folder: Path, names: str) -> list[str]:
    given = ["--model", str(MODEL), "--data", str(folder / "data"), "--out", str(folder / "out")]
    return ["eval", *given, "--benchmark", names]


def write_benchmark(folder: Path, name: str, rows: int, task: str = "math", long: int = 0) -> None:
    """Write a test split in the form of tools/prepare_data.py; the first ``long`` prompts are long."""
    table = {
        "id": [f"{name}-{number}" for number in range(rows)],
        "prompt": [f"{'Well, ' * 90 * (number < long)}how much is {number} + 1?" for number in range(rows)],
        "system": [None] * rows,
        "answer": ["B" if task == "multiple_choice" else str(number + 1) for number in range(rows)],
        "task": [task] * rows,
        "options": [["A", "B"] if task == "multiple_choice" else None] * rows,
        "subject": [None] * rows,
        "origin": ["made.jsonl:1"] * rows,
    }
    schema = pyarrow.schema(
        [(key, pyarrow.list_(pyarrow.string()) if key == "options" else pyarrow.string()) for key in table]
    )
    (folder / name).mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.table(table, schema), folder / name / "test.parquet")


def test_a_table_every_response_and_what_was_measured_with_what(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*GIVEN, "--out", str(tmp_path / "out"), *SMALL]) == 0
    text = capsys.readouterr().out
    assert "gcd" in text and "avg@2" in text and "pass@2" in text and "maj@2" in text
    found = results(tmp_path / "out")
    assert found["metrics"]["eval/gcd/prompts"] == 3
    assert found["responses"] == 6 == len(responses(tmp_path / "out"))
    assert found["tokens"] == sum(row["tokens"] for row in responses(tmp_path / "out"))
    assert found["tokens_per_second"] == pytest.approx(found["tokens"] / found["seconds"])
    assert len(found["settings"]["model"]["weights_sha256"]) == 64
    assert found["settings"]["evaluation"]["samples_per_prompt"] == 2
    assert {"megatron-srpo", "torch", "transformers"} <= set(found["versions"])
    assert "| gcd | 3 |" in (tmp_path / "out" / "table.md").read_text()


def test_a_finished_evaluation_is_shown_again_and_not_sampled_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*GIVEN, "--out", str(tmp_path / "out"), *SMALL]
    assert main(command) == 0
    first = capsys.readouterr().out
    before = (tmp_path / "out" / "evaluation.json").read_bytes()
    monkeypatch.setattr(measure, "engine_alone", None)  # no engine is started
    assert main(command) == 0
    assert capsys.readouterr().out == first
    assert (tmp_path / "out" / "evaluation.json").read_bytes() == before


def test_the_folder_is_named_after_model_and_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed in (1, 2, 2):
        assert main([*GIVEN, *SMALL, f"seed={seed}"]) == 0
    names = sorted(path.name for path in (tmp_path / "runs" / "eval").iterdir())
    assert len(names) == 2 and all(name.startswith("qwen3-tiny-") for name in names)


@pytest.mark.parametrize(
    ("change", "words"),
    [("seed=7", "seed = 7, but"), ("evaluation.temperature=0.5", "evaluation.temperature = 0.5, but")],
)
def test_two_evaluations_are_not_mixed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str, words: str
) -> None:
    command = [*GIVEN, "--out", str(tmp_path / "out"), *SMALL]
    assert main(command) == 0
    assert main([*command, change]) == 2
    said = capsys.readouterr().err
    assert words in said and "choose another --out" in said


def test_a_stop_loses_no_finished_block_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Blocks of one prompt; the third is interrupted while it is scored."""
    monkeypatch.setattr(measure, "BLOCK_RESPONSES", 2)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main([*GIVEN, "--out", str(whole), *SMALL]) == 0

    real, calls = RewardPool.score, []

    def score(pool: RewardPool, items: Any) -> Any:
        calls.append(len(items))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(pool, items)

    monkeypatch.setattr(RewardPool, "score", score)
    assert main([*GIVEN, "--out", str(cut), *SMALL]) == 130
    assert "goes on" in capsys.readouterr().err
    assert len(responses(cut)) == 4 and not (cut / "evaluation.json").exists()
    # What a kill in the middle of a block leaves: a response, and half a line.
    with (cut / "responses.jsonl").open("a") as file:
        file.write(json.dumps({**responses(cut)[0], "step": 2}) + '\n{"step": 2, "id')
    assert main([*GIVEN, "--out", str(cut), *SMALL]) == 0
    assert "going on after 4 of 6 responses" in capsys.readouterr().err
    assert calls == [2, 2, 2, 2]
    assert responses(cut) == responses(whole)
    assert results(cut)["metrics"] == results(whole)["metrics"]


def test_a_killed_evaluation_goes_on(tmp_path: Path) -> None:
    """A real process, killed with no chance to say anything, in small blocks."""
    code = (
        "import sys; from megatron_srpo.session import measure; measure.BLOCK_RESPONSES = 8; "
        "from megatron_srpo.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    changes = [*SMALL[:2], "data.eval.0.size=60", "evaluation.samples_per_prompt=2", "reward.workers=1"]
    out = tmp_path / "out"
    command = [sys.executable, "-c", code, *GIVEN, "--out", str(out), *changes]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    while process.poll() is None and not (out / "blocks.jsonl").is_file():
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len((out / "blocks.jsonl").read_text().splitlines())
    assert done > 0 and not (out / "evaluation.json").exists()
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    rows = responses(out)
    assert len(rows) == results(out)["responses"] == 120
    assert len({(row["id"], row["sample"]) for row in rows}) == len(rows)


def test_prepared_benchmarks_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_benchmark(tmp_path / "data", "math500", 3)
    write_benchmark(tmp_path / "data", "chemistry", 2, "multiple_choice")
    assert main([*benchmark_command(tmp_path, "math500,chemistry"), *SHORT]) == 0
    found = results(tmp_path / "out")
    assert {"eval/math500/accuracy", "eval/chemistry/accuracy"} <= set(found["metrics"])
    settings = found["settings"]
    assert (settings["evaluation"]["temperature"], settings["evaluation"]["top_p"]) == (0.6, 0.95)
    # As long as the model's 1024 positions leave room beside a response.
    assert settings["data"]["max_prompt_tokens"] == 1024 - 8
    assert [source["task"] for source in settings["data"]["eval"]] == ["math", "multiple_choice"]


def test_prompts_that_are_too_long_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_benchmark(tmp_path / "data", "gsm8k", 4, long=1)
    assert main([*benchmark_command(tmp_path, "gsm8k"), *SHORT, "data.max_prompt_tokens=100"]) == 0
    assert "gsm8k: 1 prompts longer than data.max_prompt_tokens are left out" in capsys.readouterr().err
    assert results(tmp_path / "out")["left_out"] == {"gsm8k": 1}
    assert results(tmp_path / "out")["metrics"]["eval/gsm8k/prompts"] == 3
    assert "1 prompts of gsm8k were left out" in (tmp_path / "out" / "table.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*GIVEN[1:], *SMALL, "data.eval=[]"], "data.eval is empty; name at least one evaluation set"),
        ([*GIVEN[1:], *SMALL, "model.path=nowhere"], "model folder 'nowhere' does not exist"),
        ([*GIVEN[1:], *SMALL, "evaluation.evry=3"], "unknown config key 'evaluation.evry'; did you mean"),
        (
            [*GIVEN[1:], *SMALL, "data.max_prompt_tokens=3"],
            "gcd: no prompt is within data.max_prompt_tokens = 3",
        ),
        (["--model", str(MODEL), "--benchmark", "mth500"], "no benchmark 'mth500'; did you mean 'math500'?"),
        (
            ["--model", str(MODEL), "--benchmark", "math500"],
            "leaves no room for a prompt in the model's 1024",
        ),
        (["--model", str(MODEL), *SHORT], "data.eval is empty"),
        (["--model", "a", "--checkpoint", "b"], "--model a and --checkpoint b; give one of them"),
        (["--checkpoint", "nowhere"], "checkpoint 'nowhere' does not exist"),
    ],
)
def test_refusals(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert main(["eval", "--out", str(out), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.slow
def test_a_checkpoint_and_its_exported_folder_give_the_same_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A training run's newest checkpoint, converted weights, and the folder that the run exported."""
    run, tiny = (
        tmp_path / "run",
        [
            f"output_dir={tmp_path / 'run'}",
            f"model.path={MODEL}",
            "parallel.tensor=1",
            "training.steps=2",
            "rollout.prompts_per_step=4",
            "rollout.samples_per_prompt=4",
            "rollout.max_response_tokens=48",
            "evaluation.max_prompts=4",
            "evaluation.every=1",
            "optimizer.warmup_steps=0",
            "optimizer.learning_rate=1e-3",
            "reward.workers=1",
        ],
    )
    assert main(["train", *GIVEN[1:], *tiny]) == 0
    converted = tmp_path / "converted"
    convert = [
        sys.executable,
        str(ROOT / "tools/convert_hf.py"),
        "import",
        str(run / "model"),
        str(converted),
    ]
    subprocess.run(
        convert, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, stdout=subprocess.DEVNULL
    )
    config = ["--config", str(run / "config.yaml")]
    ways = {
        "newest": ["--checkpoint", str(run)],
        "folder": [*config, f"model.path={run / 'model'}"],
        "converted": [*config, "--model", str(converted)],
    }
    for name, way in ways.items():
        assert main(["eval", "--out", str(tmp_path / name), *way]) == 0
    found = {name: results(tmp_path / name) for name in ways}
    assert (
        responses(tmp_path / "newest") == responses(tmp_path / "folder") == responses(tmp_path / "converted")
    )
    assert found["newest"]["metrics"] == found["folder"]["metrics"] == found["converted"]["metrics"]
    models = {name: result["settings"]["model"] for name, result in found.items()}
    assert models["newest"]["step"] == 2 and found["newest"]["model"] == "run-step2"
    # The exported weights are those of the run's own export, bit for bit.
    assert models["newest"]["weights_sha256"] == models["folder"]["weights_sha256"]
    # And what training measured after its last step is what is measured here.
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    shared = {name: value for name, value in last.items() if name.startswith("eval/")}
    assert shared == {name: found["newest"]["metrics"][name] for name in shared}
    assert not list(tmp_path.glob("*/.exported-*"))
