"""``megatron-srpo launch``, status, logs, attach and cancel, as far as they need no cluster."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_srpo.cli import main
from tests.session.test_loop import SMALL

ROOT = Path(__file__).parents[2]
QUICKSTART = str(ROOT / "examples" / "quickstart.yaml")
TINY = f"model.path={ROOT}/examples/models/qwen3-tiny"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", QUICKSTART, "launch.nodez=2"], "unknown config key 'nodez'; did you mean 'nodes'?"),
        (["--config", QUICKSTART, "--recipe", "qwen3-8b-srpo"], "--recipe and --config; give one"),
        (["--config", QUICKSTART, "--data", "x"], "--data is for --recipe"),
        (["--recipe", "qwen3-8b-spro"], "did you mean qwen3-8b-srpo?"),
        (["--recipe", "qwen3-8b-srpo"], "models/Qwen3-8B' does not exist"),
        (["--config", QUICKSTART, TINY, "launch.ranks_per_node=3"], "3 ranks cannot be shared by replicas"),
        (
            ["--executor", "local", "--detach", "--config", QUICKSTART, TINY, "launch.ranks_per_node=2"],
            "nohup",
        ),
        (
            ["--executor", "local", "--dry-run", "--config", QUICKSTART, TINY, "launch.nodes=2"],
            "launch.nodes = 2 needs --executor slurm",
        ),
    ],
)
def test_what_cannot_be_launched_is_refused_before_anything_is(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["launch", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_keys_are_listed(capsys: pytest.CaptureFixture) -> None:
    assert main(["launch", "--options"]) == 0
    listed = capsys.readouterr().out
    assert "launch.rollout_nodes  (integer; default 0)" in listed
    assert "launch.slurm.account  (text; default '')" in listed


def test_a_recipe_takes_its_layout_from_the_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("nemo_run", reason="needs nemo-run (make install-launch)")
    monkeypatch.setenv("NEMORUN_HOME", str(tmp_path / "nemo"))
    monkeypatch.chdir(tmp_path)
    nodes = ["launch.nodes=2", "launch.rollout_nodes=1", "launch.container.image=/images/srpo.sqsh"]
    assert main(["launch", "--recipe", "qwen3-8b-srpo", "--data", "sets", "--dry-run", *nodes]) == 0
    script = capsys.readouterr().out
    assert "#SBATCH --nodes=3\n" in script and "#SBATCH --gpus-per-node=8\n" in script
    assert "SRPO_SERVERS_PER_NODE=4\n" in script and "  placement: disaggregated\n" in script
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", ["status", "logs", "attach", "cancel"])
def test_a_folder_without_a_launched_run_is_named(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main([command, str(tmp_path)]) == 2
    assert f"{tmp_path} holds no launched run" in capsys.readouterr().err


@pytest.mark.parametrize("record", ["", "[]", '{"executor": "slurm"}', "{"])
def test_a_spoiled_record_is_no_traceback(record: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "job.json").write_text(record)
    assert main(["status", str(tmp_path)]) == 2
    assert "is not the record of a launch" in capsys.readouterr().err


def launch_here(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "megatron_srpo.cli", "launch", "--executor", "local"]
    return subprocess.run(
        [
            *command,
            "--config",
            QUICKSTART,
            *SMALL,
            f"output_dir={folder}",
            "launch.ranks_per_node=2",
            *overrides,
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=400,
    )


def test_a_run_on_this_machine_is_watched_remembered_and_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("nemo_run", reason="needs nemo-run (make install-launch)")
    folder = tmp_path / "run"
    done = launch_here(folder, "training.steps=2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ranks: step 2/2" in done.stdout
    record = json.loads((folder / "launch" / "job.json").read_text())
    assert record["executor"] == "local" and record["name"] == "run"
    assert main(["status", str(folder)]) == 0
    assert "run: finished, step 2 of 2" in capsys.readouterr().out
    assert main(["logs", str(folder), "--role", "ranks", "--tail", "3"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert main(["attach", str(folder)]) == 0
    assert main(["cancel", str(folder)]) == 0


@pytest.mark.slow
def test_a_run_that_fails_here_says_so_by_its_exit_status(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("nemo_run", reason="needs nemo-run (make install-launch)")
    folder = tmp_path / "run"
    done = launch_here(
        folder, "training.steps=2", "data.train=[{kind: jsonl, path: nowhere.jsonl, task: exact}]"
    )
    assert done.returncode == 1
    assert "nowhere.jsonl" in done.stdout
    assert main(["status", str(folder)]) == 1
    assert "run: failed" in capsys.readouterr().out
