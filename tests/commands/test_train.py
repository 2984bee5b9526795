"""``train`` refuses what cannot work before it starts anything, and starts the right thing otherwise."""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_srpo import platform
from megatron_srpo.cli import main
from megatron_srpo.commands import train
from megatron_srpo.config.loader import to_yaml
from megatron_srpo.config.run import RunConfig

ROOT = Path(__file__).parents[2]
QUICKSTART = str(ROOT / "examples" / "quickstart.yaml")
MODEL = f"model.path={ROOT / 'examples' / 'models' / 'qwen3-tiny'}"

Refusal = Callable[..., str]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What would have been started; nothing is."""
    calls: list[tuple[str, Any]] = []

    def launch(ranks: int, arguments: list[str]) -> int:
        calls.append(("launch", (ranks, arguments)))
        return 7

    def here(config: RunConfig, resume: bool) -> int:
        calls.append(("here", (config, resume)))
        return 0

    monkeypatch.setattr(train, "launch_ranks", launch)
    monkeypatch.setattr(train, "train_here", here)
    monkeypatch.setattr(platform, "rank_environment", lambda: None)
    return calls


@pytest.fixture
def refusal(started: list[tuple[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refusal:
    """Run ``train`` on the quickstart; expect status 2, one line on stderr, and nothing started."""

    def run(*arguments: str) -> str:
        status = main(["train", "--config", QUICKSTART, MODEL, f"output_dir={tmp_path}/run", *arguments])
        shown = capsys.readouterr()
        assert status == 2
        assert shown.out == ""
        assert shown.err.startswith("megatron-srpo: error: ")
        assert shown.err.count("\n") == 1
        assert "Traceback" not in shown.err
        assert started == []
        assert not (tmp_path / "run").exists()
        return shown.err

    return run


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "optimizer.lerning_rate=1",
            "unknown config key 'optimizer.lerning_rate'; did you mean 'learning_rate'?",
        ),
        ("algorythm.name=grpo", "unknown config key 'algorythm'; did you mean 'algorithm'?"),
        ("data.train.1.famly=gcd", "unknown config key 'data.train.1.famly'; did you mean 'family'?"),
        ("algorithm.name=ppo", "algorithm.name = 'ppo'; choose one of srpo, grpo, sdpo, advantage_mix"),
        ("training.steps=many", "training.steps = 'many' is a text; expected integer"),
    ],
)
def test_a_mistyped_key_or_value_is_refused(refusal: Refusal, override: str, message: str) -> None:
    assert message in refusal(override)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["parallel.tensor=3"], "tensor parallel size 3 does not divide the model's 8 attention heads"),
        (["parallel.pipeline=3"], "pipeline parallel size 3 does not divide the model's 4 layers"),
        (["rollout.prompts_per_step=33", "training.prompts_per_mini_batch=8"], "33 is not a multiple of"),
        (["data.max_prompt_tokens=1000"], "= 1064 exceeds the model's max_position_embeddings = 1024"),
        (["training.micro_batch_tokens=255"], "cannot hold one sequence"),
        (["model.path=nowhere"], "model folder 'nowhere' does not exist"),
        (["data.train=[]"], "data.train is empty"),
    ],
)
def test_impossible_arithmetic_is_refused_before_any_rank_starts(
    refusal: Refusal, overrides: list[str], message: str
) -> None:
    assert message in refusal(*overrides)


def test_replicas_that_cannot_share_the_batch(
    started: list[tuple[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "--config", QUICKSTART, "--replicas", "3", MODEL, f"output_dir={tmp_path}/run"]
    assert main(arguments) == 2
    assert "32 prompts per optimizer step cannot be shared evenly by 3" in capsys.readouterr().err
    assert started == []


def test_an_absent_config_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--config", "nowhere.yaml"]) == 2
    assert "cannot read the config file nowhere.yaml: No such file" in capsys.readouterr().err


def test_without_a_config_the_model_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train"]) == 2
    assert "missing config key 'model'" in capsys.readouterr().err


def run_folder(folder: Path) -> Path:
    """A folder that already holds the run of the quickstart."""
    config = train.run_config(
        argparse.Namespace(config=QUICKSTART, overrides=[MODEL, f"output_dir={folder}"])
    )
    (folder / "config.yaml").write_text(to_yaml(config))
    return folder


class TestExistingRun:
    def arguments(self, folder: Path, *more: str) -> list[str]:
        return ["train", "--config", QUICKSTART, *more, MODEL, f"output_dir={run_folder(folder)}"]

    def test_it_is_not_overwritten(
        self, started: list[tuple[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(self.arguments(tmp_path)) == 2
        assert "already holds a run; continue it with --resume" in capsys.readouterr().err
        assert started == []

    def test_nor_by_ranks_that_torchrun_or_srun_started(
        self,
        started: list[tuple[str, Any]],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(platform, "rank_environment", lambda: platform.RankEnvironment(0, 2, 0))
        assert main(self.arguments(tmp_path)) == 2
        assert "already holds a run" in capsys.readouterr().err
        assert started == []

    def test_it_is_resumed_on_request(self, started: list[tuple[str, Any]], tmp_path: Path) -> None:
        assert main(self.arguments(tmp_path, "--resume")) == 7
        ((kind, (ranks, arguments)),) = started
        assert (kind, ranks) == ("launch", 2)
        assert arguments == ["train", "--config", QUICKSTART, "--resume", MODEL, f"output_dir={tmp_path}"]

    def test_it_is_gone_on_with_if_started(self, started: list[tuple[str, Any]], tmp_path: Path) -> None:
        assert main(self.arguments(tmp_path, "--resume-if-started")) == 7
        new = ["train", "--config", QUICKSTART, "--resume-if-started", MODEL, f"output_dir={tmp_path}/new"]
        assert main(new) == 7
        assert main([*new, "parallel.tensor=1"]) == 0
        assert main([*self.arguments(tmp_path, "--resume-if-started"), "checkpoint.every=3"]) == 7
        # Ranks are told the same, and find out for themselves.
        flags = [value[1][3] for kind, value in started if kind == "launch"]
        assert flags == ["--resume-if-started"] * 3
        assert [value[1] for kind, value in started if kind == "here"] == [False]

    def test_a_started_run_of_another_configuration_is_refused_all_the_same(
        self, started: list[tuple[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main([*self.arguments(tmp_path, "--resume-if-started"), "seed=5"]) == 2
        assert "seed = 5, but the run in" in capsys.readouterr().err
        with pytest.raises(SystemExit):
            main(self.arguments(tmp_path, "--resume-if-started", "--resume"))
        assert "not allowed with argument" in capsys.readouterr().err
        assert started == []

    def test_not_under_another_configuration(
        self, started: list[tuple[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main([*self.arguments(tmp_path, "--resume"), "seed=5"]) == 2
        assert "seed = 5, but the run in" in capsys.readouterr().err
        assert started == []

    def test_an_empty_folder_has_nothing_to_resume(
        self, started: list[tuple[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["train", "--config", QUICKSTART, "--resume", MODEL, f"output_dir={tmp_path}"]) == 2
        assert "holds no run to resume" in capsys.readouterr().err
        assert started == []


class TestStarting:
    def test_ranks_are_tensor_times_pipeline_times_replicas(
        self, started: list[tuple[str, Any]], tmp_path: Path
    ) -> None:
        overrides = [MODEL, "parallel.pipeline=2", f"output_dir={tmp_path}/run"]
        assert main(["train", "--config", QUICKSTART, "--replicas", "2", *overrides]) == 7
        assert started == [("launch", (8, ["train", "--config", QUICKSTART, *overrides]))]

    def test_what_the_ranks_are_told_describes_the_same_run(
        self, started: list[tuple[str, Any]], tmp_path: Path
    ) -> None:
        main(["train", "--config", QUICKSTART, MODEL, "seed=4", f"output_dir={tmp_path}/run"])
        ((_, (_, arguments)),) = started
        main(arguments[:1] + arguments[1:])
        assert started[1] == started[0]

    def test_a_single_rank_needs_no_launcher(self, started: list[tuple[str, Any]], tmp_path: Path) -> None:
        overrides = [MODEL, "parallel.tensor=1", f"output_dir={tmp_path}/run"]
        assert main(["train", "--config", QUICKSTART, *overrides]) == 0
        ((kind, (config, resume)),) = started
        assert (kind, config.parallel.tensor, resume) == ("here", 1, False)

    def test_a_rank_of_torchrun_trains_as_itself(
        self, started: list[tuple[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(platform, "rank_environment", lambda: platform.RankEnvironment(1, 2, 1))
        assert main(["train", "--config", QUICKSTART, MODEL, f"output_dir={tmp_path}/run"]) == 0
        assert [kind for kind, _ in started] == ["here"]


def test_an_interrupt_is_no_traceback(
    started: list[tuple[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(ranks: int, arguments: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "launch_ranks", interrupted)
    assert main(["train", "--config", QUICKSTART, MODEL, f"output_dir={tmp_path}/run"]) == 130
    assert "interrupted; continue with --resume" in capsys.readouterr().err


def test_in_a_process_of_its_own() -> None:
    """The real command: exit status 2, one line, no traceback, nothing on standard output."""
    done = subprocess.run(
        [sys.executable, "-m", "megatron_srpo.cli", "train", "--config", QUICKSTART, "training.step=3"],
        cwd=ROOT,
        env=platform.child_environment({"PYTHONPATH": str(ROOT)}),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "megatron-srpo: error: unknown config key 'training.step'; did you mean 'steps'?\n"
    )
