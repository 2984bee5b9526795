"""Every command and every YAML block of docs/slurm.md can be read by the program that it is for."""

import re
import shlex
from pathlib import Path

import pytest

from megatron_srpo.cli import make_parser, overrides_first
from megatron_srpo.config.launch import LaunchConfig
from megatron_srpo.config.loader import load_config

TEXT = (Path(__file__).parents[2] / "docs" / "slurm.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.S | re.M)
COMMANDS = [
    line.split("  #")[0]
    for _, block in BLOCKS
    for line in block.splitlines()
    if line.startswith("megatron-srpo ")
]
YAML = [block for kind, block in BLOCKS if kind == "yaml"]


def test_the_page_has_what_is_read_here() -> None:
    assert len(COMMANDS) >= 6 and len(YAML) >= 3


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_only_options_that_exist(command: str) -> None:
    words = shlex.split(command)[1:]
    parsed = make_parser().parse_args(overrides_first(words))
    if parsed.command == "launch":
        own = [word.removeprefix("launch.") for word in parsed.overrides if word.startswith("launch.")]
        assert load_config(LaunchConfig, None, own)


@pytest.mark.parametrize("block", YAML)
def test_a_block_is_a_launch(block: str, tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(block)
    assert load_config(LaunchConfig, path) != LaunchConfig()


def test_the_keys_that_it_names_exist() -> None:
    known = set(re.findall(r"`(?:launch\.)?((?:slurm|code|container|ssh)\.[a-z_]+)`", TEXT))
    for key in known:
        section, name = key.split(".")
        assert name in vars(vars(LaunchConfig())[section]), key
