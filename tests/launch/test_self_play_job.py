"""A self-play as a job: what its ranks run and read, and what cannot be launched."""

from pathlib import Path

import pytest
import yaml

from megatron_srpo.cli import main
from megatron_srpo.config.launch import LaunchConfig
from megatron_srpo.config.loader import build, load_config, with_overrides
from megatron_srpo.config.run import RunConfig
from megatron_srpo.config.self_play import SelfPlayConfig
from megatron_srpo.errors import ConfigError
from megatron_srpo.launch.job import make_job
from megatron_srpo.launch.script import role_files, trainer_script
from megatron_srpo.launch.self_play_recipes import self_play_config


def recipe() -> SelfPlayConfig:
    return self_play_config("qwen3-4b-base-r-zero", output_dir="runs/zero")


def test_ranks_read_the_self_play(tmp_path: Path) -> None:
    job = make_job(recipe(), LaunchConfig(ranks_per_node=8), tmp_path)
    assert job.run_folder == tmp_path / "runs" / "zero"
    script = trainer_script(job)
    assert "-m megatron_srpo.cli self-play --resume-if-started --config" in script
    (tmp_path / "run.yaml").write_text(role_files(job, packaged=False)["run.yaml"])
    read = load_config(SelfPlayConfig, tmp_path / "run.yaml")
    assert read == with_overrides(recipe(), [f"output_dir={tmp_path}/runs/zero"])


def test_a_training_run_is_launched_as_before(tmp_path: Path) -> None:
    run = build(RunConfig, {"model": {"path": "m"}, "output_dir": "runs/one"})
    job = make_job(run, LaunchConfig(), tmp_path)
    assert "-m megatron_srpo.cli train --resume-if-started" in trainer_script(job)


def test_servers_on_several_nodes_are_refused_unless_they_are_the_users(tmp_path: Path) -> None:
    nodes = LaunchConfig(ranks_per_node=8, nodes=2)
    with pytest.raises(ConfigError, match=r"launch\.nodes = 2.*rollout\.sglang\.urls"):
        make_job(recipe(), nodes, tmp_path)
    servers = "{urls: [http://192.0.2.7:30000]}"
    urls = ["solver.rollout.placement=disaggregated", f"solver.rollout.sglang={servers}"]
    assert make_job(with_overrides(recipe(), urls), nodes, tmp_path).command == "self-play"


def test_a_dry_run_of_a_recipe_and_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = Path(__file__).parents[2] / "examples" / "models" / "qwen3-tiny"
    place = ["launch.code.package=none", "launch.ranks_per_node=8", "launch.slurm.account=a"]
    common = ["launch", "--dry-run", "--executor", "slurm", *place]
    assert main([*common, "--recipe", "qwen3-4b-base-r-diverse", "launch.container.image=img"]) == 0
    assert "\nchallenger:" in capsys.readouterr().out
    run = {
        "model": {"path": str(model)},
        "algorithm": {"name": "grpo"},
        "data": {"max_prompt_tokens": 64},
        "rollout": {"max_response_tokens": 64},
    }
    tree = {"output_dir": "runs/own", "challenger": run, "solver": run}
    Path("own.yaml").write_text(yaml.safe_dump(tree))
    assert main([*common, "--config", "own.yaml"]) == 0
    assert "\nchallenger:" in capsys.readouterr().out
    assert main([*common, "--recipe", "qwen3-4b-base-r-diverse", "--benchmark", "chemistry"]) == 2
    assert "--benchmark" in capsys.readouterr().err


def test_a_launcher_that_watches_for_hangs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"launch\.launcher=torchrun"):
        make_job(recipe(), LaunchConfig(ranks_per_node=8, launcher="ft_launcher"), tmp_path)
