"""``train --options SECTION`` lists config keys from the dataclasses themselves."""

import dataclasses
import re

import pytest

from megatron_srpo.cli import main
from megatron_srpo.commands.common import describe_options
from megatron_srpo.config.algorithm import AlgorithmConfig
from megatron_srpo.config.data import SourceConfig
from megatron_srpo.config.training import OptimizerConfig
from megatron_srpo.errors import ConfigError


def keys(section: str) -> list[str]:
    return re.findall(r"^(\S+)  \(", describe_options(section), re.MULTILINE)


def test_a_section(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--options", "optimizer"]) == 0
    text = capsys.readouterr().out
    assert "optimizer.learning_rate  (number; default 5e-06)\n    Peak learning rate." in text
    assert "optimizer.schedule  (constant | linear | cosine; default 'constant')" in text
    assert keys("optimizer") == [f"optimizer.{field.name}" for field in dataclasses.fields(OptimizerConfig)]


def test_a_section_within_a_section() -> None:
    assert "algorithm.distillation.top_k  (integer; default 100)" in describe_options(
        "algorithm.distillation"
    )
    assert all(key.startswith("algorithm.distillation.") for key in keys("algorithm.distillation"))
    plain = [f.name for f in dataclasses.fields(AlgorithmConfig) if f.name not in ("policy", "distillation")]
    assert {f"algorithm.{name}" for name in plain} < set(keys("algorithm"))
    assert set(keys("algorithm.policy")) < set(keys("algorithm"))


def test_the_entries_of_a_list_are_listed_too() -> None:
    """Prompt sources are entries of a list; their keys are those that users need most."""
    names = [field.name for field in dataclasses.fields(SourceConfig)]
    assert keys("data.train") == [f"data.train.{name}" for name in names]
    assert {f"data.train.N.{name}" for name in names} < set(keys("data"))
    assert "data.train  (a list of a SourceConfig section; default ())" in describe_options("data")


def test_all() -> None:
    everything = keys("all")
    assert len(everything) == len(set(everything)) > 100
    for key in ("output_dir", "seed", "model.path", "report.watch.window", "data.eval.N.family"):
        assert key in everything
    assert "model.path  (text; required)" in describe_options("all")
    assert "training.prompts_per_mini_batch  (integer or null; default null)" in describe_options("all")


def test_every_key_has_a_meaning() -> None:
    lines = describe_options("all").splitlines()
    assert all(
        re.fullmatch(r"\S+  \(.+; (default .*|default: empty|required)\)", line) for line in lines[::2]
    )
    assert all(re.fullmatch(r"    \S.*", line) for line in lines[1::2])


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("optimiser", "no config section 'optimiser'; sections: model, parallel, data, .*report, or all"),
        ("algorithm.teacher", "no config section 'teacher'; sections: policy, distillation, or all"),
        ("optimizer.learning_rate", "no config section 'learning_rate'; sections: none here, or all"),
        ("seed", "no config section 'seed'"),
    ],
)
def test_an_unknown_section_is_refused_with_those_there_are(
    section: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=message):
        describe_options(section)
    assert main(["train", "--options", section]) == 2
    assert capsys.readouterr().err.startswith("megatron-srpo: error: no config section")
