"""The keys of a launch: what is refused, and with which words."""

import pytest

from megatron_srpo.config.launch import LaunchConfig
from megatron_srpo.config.loader import load_config
from megatron_srpo.errors import ConfigError


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("slurm.time=4 hours", "give minutes, HH:MM:SS or DAYS-HH:MM:SS"),
        (
            "slurm.options={partition: gpu}",
            "slurm.options.partition is not set here; use launch.slurm.partition",
        ),
        ("slurm.options={job_name: x}", "use launch.name"),
        ("slurm.options={licenses: [a]}", "give a text, a number, or true for a flag"),
        ("slurm.stop_before_s=5", "is too small; the least is 10"),
        ("container.mounts=[/data:/data]", "but no image"),
        ("container={image: a, mounts: [/data]}", "write from:to"),
        ("container={image: a, arguments: [--a b]}", "without spaces"),
        ("environment={1A: x}", "no name of a variable"),
        ("name=a b", "without spaces and slashes"),
        ("ssh={host: login}", "give an absolute path there"),
        ("ssh={host: -oProxyCommand=x, folder: /f}", "give the name of a machine"),
        ("ssh={host: login, folder: /f}", "workdir = '' with ssh.host"),
        ("launcher=mpirun", "choose one of torchrun, ft_launcher"),
        ("rollout_nodez=1", "did you mean 'rollout_nodes'"),
    ],
)
def test_what_cannot_be_used_is_refused(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config(LaunchConfig, None, [override])


@pytest.mark.parametrize("time", ["30", "04:00:00", "2-12:00:00", "90:00"])
def test_slurms_forms_of_time_are_taken(time: str) -> None:
    assert load_config(LaunchConfig, None, [f"slurm.time='{time}'"]).slurm.time == time


def test_ranks_are_counted_over_the_nodes_that_train() -> None:
    assert load_config(LaunchConfig, None, ["nodes=3", "rollout_nodes=2", "ranks_per_node=4"]).ranks == 12
