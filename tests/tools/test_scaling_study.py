"""The command: what it refuses, and whole studies on this machine."""

import csv
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tools.scaling_study import main

#: A run of seconds.
SMALL = [
    "parallel.tensor=1",
    "rollout.prompts_per_step=4",
    "rollout.samples_per_prompt=4",
    "rollout.max_response_tokens=16",
    "reward.workers=1",
    f"model.path={REPOSITORY}/examples/models/qwen3-tiny",
]
QUICKSTART = ["--config", str(REPOSITORY / "examples/quickstart.yaml")]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["launch.nodes=2"], "launch.nodes=2 is set by --nodes"),
        (["training.steps=5"], "is set by --steps"),
        (["--steps", "2", "--warmup", "2"], "--warmup 2 with --steps 2"),
        (["--staleness", "0", "1", "--warmup", "1"], "base-n1-k1: rollout.max_staleness = 1"),
        (["rollout.prompts_per_step=2"], "strong-n4-k0: 2 prompts per optimizer step"),
        (["--recipe", "qwen3-8b-srpo"], "give one of them"),
    ],
)
def test_what_is_not_possible_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    out = tmp_path / "study"
    assert main([*QUICKSTART, "--executor", "local", "--out", str(out), *SMALL, *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not out.exists()


def test_a_ratio_that_is_no_number_is_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--out", "x", "--rollout-nodes-per-node", "1/0"])
    assert "'1/0' is no number" in capsys.readouterr().err


@pytest.mark.slow
def test_a_study_on_this_machine_survives_a_failing_run_and_is_completed_by_the_same_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("nemo_run", reason="needs nemo-run: make install-launch")
    out = tmp_path / "study"
    sweep = ["--nodes", "1", "2", "--steps", "3", "--warmup", "1", "--gpu", "h100"]
    command = [*QUICKSTART, "--executor", "local", "--out", str(out), *sweep, *SMALL]
    (out / "points").mkdir(parents=True)
    (out / "points/strong-n2-k0").write_text("A file where the run's folder should be.")

    assert main(command) == 1
    lines = read(out)
    assert [(one["mode"], one["nodes"], one["state"]) for one in lines] == [
        ("weak", "1", "finished"),
        ("weak", "2", "finished"),
        ("strong", "1", "finished"),
        ("strong", "2", "failed"),
    ]
    assert lines[3]["reason"] and lines[3]["reason"] in (out / "study.md").read_text()
    assert not (out / "points/base-n1-k0/checkpoints").exists()
    before = lines[:3]

    assert main(command) == 0
    assert "strong-n2-k0: 2 ranks, " in capsys.readouterr().err
    lines = read(out)
    assert lines[:3] == before  # kept, not run again
    assert lines[3]["folder"].endswith("strong-n2-k0-try2")
    check_study(lines, out)
    # The same prompts and seeds on one replica and on two: strong scaling changes no token.
    assert lines[3]["tokens_per_step"] == lines[2]["tokens_per_step"]
    assert [one["prompts_per_step"] for one in lines] == ["4", "8", "4", "4"]

    assert main([*command, "optimizer.learning_rate=1e-3"]) == 2
    assert "optimizer.learning_rate" in capsys.readouterr().err


def read(out: Path) -> list[dict[str, str]]:
    with (out / "points.csv").open() as file:
        return list(csv.DictReader(file))


def check_study(lines: list[dict[str, str]], out: Path) -> None:
    """Check that every line is complete, and that the figures and tables are there."""
    for one in lines:
        assert one["state"] == "finished" and not one["reason"]
        assert one["steps_counted"] == "2"
        parts = sum(float(one[f"{phase}_seconds"]) for phase in ("generate", "reward", "score", "teacher"))
        parts += float(one["update_seconds"]) + float(one["sync_seconds"])
        assert parts == pytest.approx(float(one["step_seconds"]))
        rate = float(one["tokens_per_step"]) / float(one["step_seconds"])
        assert float(one["tokens_per_second"]) == pytest.approx(rate)
        gpus = int(one["train_gpus"]) + int(one["server_gpus"])
        assert float(one["tokens_per_second_per_gpu"]) == pytest.approx(rate / gpus)
        assert float(one["predicted_step_seconds"]) > 0 and not one["no_prediction_because"]
        assert one["speed_up"] and one["efficiency"] and one["predicted_efficiency"]
    for name in ("throughput", "speed_up", "phases"):
        assert (out / f"{name}.svg").is_file() and (out / f"{name}.png").is_file()
        assert f"![{name}.svg]" in (out / "study.md").read_text()
