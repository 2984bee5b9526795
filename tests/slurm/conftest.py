"""A virtual Slurm cluster for the tests of this folder; one for each process that runs tests."""

import os
from collections.abc import Iterator

import pytest

from tests.slurm.jobs import Jobs
from tools.virtual_slurm import Cluster, Settings, missing

NODES = 5


def settings() -> Settings:
    """Return the tests' cluster: with container flags where the plugin for them can be compiled."""
    plain = Settings(name=f"test{os.getpid()}", nodes=NODES, gpus=2, grace_time=90)
    with_pyxis = Settings(**{**vars(plain), "pyxis": True})
    return plain if missing(with_pyxis) else with_pyxis


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    """The cluster, up; a test that switches a node off switches it on again."""
    wanted = settings()
    lacking = missing(wanted)
    if lacking:
        pytest.skip(f"needs Slurm: {lacking}")
    for cluster in Cluster.leftovers():
        cluster.down()
    with Cluster(wanted).running() as cluster:
        yield cluster


@pytest.fixture
def jobs(slurm: Cluster) -> Iterator[Jobs]:
    """Jobs of one test; those that still run at its end are cancelled, and all nodes are up again."""
    jobs = Jobs(slurm)
    yield jobs
    jobs.cancel_all()
    jobs.all_nodes_up()
