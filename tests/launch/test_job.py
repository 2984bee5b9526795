"""Who runs where, and what is refused."""

from pathlib import Path

import pytest

from megatron_srpo.errors import ConfigError
from tests.launch.jobs import example_job


def test_paths_are_absolute_and_count_from_the_folder_of_the_launch() -> None:
    job = example_job(["nodes=1"])
    assert job.run.output_dir == "/lustre/me/work/runs/quickstart"
    assert job.name == "quickstart"
    assert str(job.folder) == "/lustre/me/work/runs/quickstart/launch"


def test_a_workdir_is_where_paths_count_from() -> None:
    job = example_job(["workdir=/lustre/me", "name=night"], ["output_dir=out"])
    assert (job.run.output_dir, job.name) == ("/lustre/me/out", "night")


def test_an_absolute_run_folder_stays(tmp_path: Path) -> None:
    assert example_job([], [f"output_dir={tmp_path}"]).run_folder == tmp_path


def test_one_node_starts_its_servers_itself() -> None:
    job = example_job(["nodes=1"])
    assert not job.registers
    assert job.run.rollout.sglang.registry == ""


def test_rollout_nodes_come_after_those_that_train() -> None:
    job = example_job(["nodes=2", "rollout_nodes=3", "servers_per_node=4"])
    assert (job.nodes, job.first_server_node, job.server_nodes) == (5, 2, 3)
    assert job.run.rollout.sglang.servers == 12
    assert job.run.rollout.sglang.registry == "/lustre/me/work/runs/quickstart/launch/servers"


def test_a_run_counts_the_servers_of_one_machine() -> None:
    job = example_job(["nodes=2", "rollout_nodes=2"], ["rollout.engine=sglang", "rollout.sglang.servers=3"])
    assert (job.servers_per_node, job.run.rollout.sglang.servers) == (3, 6)


def test_several_nodes_hold_servers_and_ranks() -> None:
    job = example_job(["nodes=2"])
    assert (job.nodes, job.first_server_node, job.server_nodes) == (2, 0, 2)


def test_external_servers_are_left_alone() -> None:
    job = example_job(["nodes=2"], ["rollout.engine=sglang", "rollout.sglang.urls=[http://a:1]"])
    assert not job.registers


def test_the_local_engine_needs_no_servers() -> None:
    assert not example_job(["nodes=2"], []).registers


@pytest.mark.parametrize(
    ("launch", "run", "words"),
    [
        (["rollout_nodes=1"], [], "set rollout.engine=sglang, or launch.rollout_nodes=0"),
        (
            ["rollout_nodes=1"],
            ["rollout.engine=sglang", "rollout.sglang.urls=[http://a:1]"],
            "leave one of them out",
        ),
        (
            ["rollout_nodes=1"],
            ["rollout.engine=sglang", "rollout.placement=colocated"],
            "set rollout.placement=disaggregated",
        ),
        (
            ["rollout_nodes=1", "ranks_per_node=4", "servers_per_node=2"],
            ["rollout.engine=sglang", "rollout.sglang.tensor_parallel=4"],
            "= 8 GPUs, but a node has 4",
        ),
        (
            ["rollout_nodes=1"],
            ["rollout.engine=sglang", "rollout.sglang.registry=/elsewhere"],
            "is set by the launch",
        ),
    ],
)
def test_what_does_not_fit_is_refused(launch: list[str], run: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        example_job(launch, run)
