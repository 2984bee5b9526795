"""The function that every rank calls: when it goes on with a run, and when it refuses."""

from pathlib import Path

import pytest

from megatron_srpo.config.loader import to_yaml, with_overrides
from megatron_srpo.config.run import RunConfig
from megatron_srpo.errors import CheckpointError, ConfigError
from megatron_srpo.launch import entry
from megatron_srpo.launch.recipes import recipe_config


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return recipe_config("qwen3-0.6b-srpo", output_dir=str(tmp_path / "run"))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each run that would have been started was to be resumed; none is."""
    calls: list[bool] = []

    def rank(config: RunConfig, resume: bool) -> int:
        calls.append(resume)
        return 0

    monkeypatch.setattr(entry, "train_rank", rank)
    return calls


def leave_a_run(config: RunConfig) -> None:
    folder = Path(config.output_dir)
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(config))


@pytest.mark.parametrize("resume", [True, False])
def test_an_empty_folder_is_a_new_run(resume: bool, config: RunConfig, started: list[bool]) -> None:
    entry.train(config, resume)
    assert started == [False]


def test_a_run_is_gone_on_with_after_a_requeue(config: RunConfig, started: list[bool]) -> None:
    leave_a_run(config)
    entry.train(config)
    entry.train(with_overrides(config, ["training.steps=900"]))
    assert started == [True, True]


def test_a_stopped_run_ends_the_process_with_its_status(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever started the ranks must be able to tell it from a run that is finished."""
    monkeypatch.setattr(entry, "train_rank", lambda config, resume: 75)
    with pytest.raises(SystemExit) as ended:
        entry.train(config)
    assert ended.value.code == 75


def test_a_run_is_not_overwritten_or_changed(config: RunConfig, started: list[bool]) -> None:
    leave_a_run(config)
    with pytest.raises(CheckpointError, match="already holds a run"):
        entry.train(config, resume=False)
    with pytest.raises(ConfigError, match=r"optimizer\.learning_rate = 1\.0"):
        entry.train(with_overrides(config, ["optimizer.learning_rate=1.0"]))
    assert started == []
