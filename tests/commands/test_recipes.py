"""``recipes`` lists what there is and writes one as YAML that ``train`` reads."""

from pathlib import Path

import pytest

from megatron_srpo.cli import main
from megatron_srpo.config.loader import load_config
from megatron_srpo.config.run import RunConfig
from megatron_srpo.config.self_play import SelfPlayConfig
from megatron_srpo.launch.recipes import RECIPES, recipe_config
from megatron_srpo.launch.self_play_recipes import SELF_PLAY_RECIPES, self_play_config


def test_the_list_names_every_recipe_with_its_layout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "--gpus-per-node", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:31]] == list(RECIPES)
    assert lines[0].endswith("on 1 x 4 GPUs")
    assert (
        "qwen3-8b-grpo               1e-06  2          TP4 DP1 optimizer and teacher in host memory"
        in "\n".join(lines)
    )
    assert lines[26].endswith("none"), "no layout of Qwen3 32B for 4 GPUs"


def test_a_recipe_is_written_as_the_yaml_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["recipes", "training.steps=3", "qwen3-8b-srpo", "--num-nodes", "2", "--model", "m"]
    arguments += ["output_dir=out", "--data", "sets/ph", "--benchmark", "physics"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    path = tmp_path / "run.yaml"
    assert main([*arguments, "--out", str(path)]) == 0
    assert capsys.readouterr().out == f"written: {path}\n"
    assert path.read_text() == printed
    assert printed.startswith("# qwen3-8b-srpo on 2 x 8 GPUs. arXiv 2604.02288.\n")
    assert "megatron-srpo launch --config FILE --launch CLUSTER launch.nodes=2" in printed.splitlines()[1]
    expected = recipe_config(
        "qwen3-8b-srpo",
        model="m",
        benchmark="physics",
        data="sets/ph",
        num_nodes=2,
        overrides=["training.steps=3", "output_dir=out"],
    )
    assert load_config(RunConfig, path) == expected


def test_one_node_is_started_by_the_command_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "qwen3-8b-srpo"]) == 0
    assert "#   megatron-srpo train --config FILE --replicas 2\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["qwen3-9b-srpo"], "no recipe 'qwen3-9b-srpo'; did you mean"),
        (["training.steps=3"], "no recipe: give a name, such as qwen3-8b-srpo"),
        (["qwen3-8b-srpo", "qwen3-4b-srpo"], "several recipes: qwen3-8b-srpo, qwen3-4b-srpo; give one"),
        (["qwen3-8b-srpo", "--out", "/nowhere/run.yaml"], "cannot write /nowhere/run.yaml"),
    ],
)
def test_what_cannot_be_written_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recipes", *arguments]) == 2
    assert f"megatron-srpo: error: {message}" in capsys.readouterr().err


def test_the_list_ends_with_self_play(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("self-play")
    assert [line.split()[0] for line in lines[start + 1 : start + 5]] == list(SELF_PLAY_RECIPES)


def test_a_self_play_on_several_nodes_is_launched(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "qwen3-8b-base-r-zero", "--num-nodes", "2"]) == 0
    assert "megatron-srpo launch --config FILE --launch CLUSTER launch.nodes=2" in capsys.readouterr().out


def test_a_self_play_is_written_as_its_own_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "play.yaml"
    arguments = ["qwen3-8b-base-r-diverse", "--coder", "c", "--embedder", "e", "--data", "sets"]
    assert main(["recipes", *arguments, "pool.questions=80", "--out", str(path)]) == 0
    assert capsys.readouterr().out == f"written: {path}\n"
    head = path.read_text().splitlines()[:2]
    assert head == [
        "# qwen3-8b-base-r-diverse on 1 x 8 GPUs. arXiv 2602.13103.",
        "#   megatron-srpo self-play --config FILE --replicas 2",
    ]
    expected = self_play_config(
        "qwen3-8b-base-r-diverse", coder="c", embedder="e", data="sets", overrides=["pool.questions=80"]
    )
    assert load_config(SelfPlayConfig, path) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["qwen3-8b-srpo", "--coder", "c"], "--coder is for recipes of self-play"),
        (
            ["qwen3-8b-base-r-zero", "--benchmark", "gsm8k"],
            "--benchmark: qwen3-8b-base-r-zero writes its own",
        ),
        (["qwen3-8b-base-r-zero", "--placement", "disaggregated"], "--placement disaggregated: "),
        (["qwen3-8b-base-r-zeros"], "no self-play recipe 'qwen3-8b-base-r-zeros'; did you mean"),
    ],
)
def test_what_no_self_play_has_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recipes", *arguments]) == 2
    assert f"megatron-srpo: error: {message}" in capsys.readouterr().err
