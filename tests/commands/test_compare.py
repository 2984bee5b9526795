"""``compare`` makes the runs that are missing, each a run of its own, and draws one figure."""

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_srpo.cli import main
from megatron_srpo.commands import compare
from megatron_srpo.config.loader import load_config, to_yaml
from megatron_srpo.config.run import RunConfig

ROOT = Path(__file__).parents[2]
GIVEN = [
    "compare",
    "--config",
    str(ROOT / "examples" / "quickstart.yaml"),
    f"model.path={ROOT / 'examples' / 'models' / 'qwen3-tiny'}",
]
STEPS = load_config(RunConfig, str(ROOT / "examples" / "quickstart.yaml")).training.steps


class Runs:
    """Stands in for the ranks: each launch leaves behind what a finished run leaves."""

    def __init__(self) -> None:
        self.launched: list[tuple[int, list[str]]] = []
        self.configs: list[RunConfig] = []
        self.compared: dict[str, list[Path]] = {}
        self.status = 0
        self.last_step = STEPS

    def launch(self, ranks: int, arguments: list[str]) -> int:
        self.launched.append((ranks, arguments))
        at = arguments.index("--config")
        overrides = [word for word in arguments[at + 2 :] if not word.startswith("--")]
        config = load_config(RunConfig, arguments[at + 1], overrides)
        self.configs.append(config)
        folder = Path(config.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(to_yaml(config))
        row = {"step": self.last_step, "reward/accuracy": 0.5}
        (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        return self.status

    def write(self, folders: dict[str, list[Path]], out: str, title: str) -> dict[str, Path]:
        self.compared = folders
        return {"figure": Path(out) / "compare.png"}


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    stand_in = Runs()
    monkeypatch.setattr(compare, "launch_ranks", stand_in.launch)
    monkeypatch.setattr(compare, "write_comparison", stand_in.write)
    return stand_in


def test_one_run_per_algorithm_and_seed(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Same weights and prompts: only the algorithm differs between runs of one seed."""
    assert main([*GIVEN, "--seeds", "1", "2", "--algorithms", "grpo", "srpo", "--out", str(tmp_path)]) == 0
    assert [(c.algorithm.name, c.seed, c.data.seed) for c in runs.configs] == [
        ("grpo", 1, 1),
        ("srpo", 1, 1),
        ("grpo", 2, 2),
        ("srpo", 2, 2),
    ]
    assert {ranks for ranks, _ in runs.launched} == {2}
    assert runs.compared == {
        "grpo": [tmp_path / "grpo_seed1", tmp_path / "grpo_seed2"],
        "srpo": [tmp_path / "srpo_seed1", tmp_path / "srpo_seed2"],
    }
    assert f"figure: {tmp_path}/compare.png" in capsys.readouterr().out


def test_the_papers_three_by_default(runs: Runs, tmp_path: Path) -> None:
    assert main([*GIVEN, "--out", str(tmp_path)]) == 0
    assert list(runs.compared) == ["grpo", "sdpo", "srpo"]


def test_a_complete_run_is_not_repeated(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert main([*GIVEN, "--algorithms", "srpo", "--out", str(tmp_path)]) == 0
    assert len(runs.launched) == 1
    assert f"{tmp_path}/srpo_seed1: already complete" in capsys.readouterr().out


def test_an_interrupted_run_is_resumed(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.last_step = STEPS - 1
    arguments = [*GIVEN, "--algorithms", "srpo", "--out", str(tmp_path)]
    assert main(arguments) == 0
    assert main(arguments) == 0
    assert ["--resume" in launched for _, launched in runs.launched] == [False, True]
    assert "resuming" in capsys.readouterr().out


def test_the_first_failure_ends_the_comparison(runs: Runs, tmp_path: Path) -> None:
    runs.status = 3
    assert main([*GIVEN, "--out", str(tmp_path)]) == 3
    assert len(runs.launched) == 1
    assert runs.compared == {}


@pytest.mark.parametrize("name", ["2026", "a: b", "1e5", "with #mark", "é"])
def test_any_folder_name_will_do(runs: Runs, tmp_path: Path, name: str) -> None:
    assert main([*GIVEN, "--algorithms", "grpo", "--out", str(tmp_path / name)]) == 0
    assert runs.configs[0].output_dir == str(tmp_path / name / "grpo_seed1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["training.stps=3"], "unknown config key 'training.stps'; did you mean 'steps'?"),
        (["parallel.tensor=3"], "does not divide the model's 8 attention heads"),
        (["--replicas", "3"], "cannot be shared evenly by 3 data-parallel replicas"),
        (["--seeds", "-1"], "seed = -1 is too small"),
    ],
)
def test_refusals_come_before_any_run(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main([*GIVEN, *arguments, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert runs.launched == []


def test_runs_of_another_configuration_are_not_mixed_in(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments: list[Any] = [*GIVEN, "--algorithms", "srpo", "--out", str(tmp_path)]
    assert main(arguments) == 0
    assert main([*GIVEN, "optimizer.learning_rate=1e-5", *arguments[4:]]) == 2
    assert "optimizer.learning_rate = 1e-05, but the run in" in capsys.readouterr().err
