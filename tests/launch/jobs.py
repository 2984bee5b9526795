"""Jobs for the tests of launching."""

from pathlib import Path

from megatron_srpo.config.launch import LaunchConfig
from megatron_srpo.config.loader import load_config
from megatron_srpo.config.run import RunConfig
from megatron_srpo.launch.job import Job, make_job

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "examples" / "quickstart.yaml"


def example_job(launch: list[str], run: list[str] | None = None, here: Path = Path("/lustre/me/work")) -> Job:
    """Return the quickstart, launched with these keys.

    Args:
        launch: changes of launch keys, ``nodes=2``.
        run: changes of the run's keys; by default SGLang samples.
        here: the folder of the launch.
    """
    changes = ["rollout.engine=sglang"] if run is None else run
    return make_job(
        load_config(RunConfig, QUICKSTART, changes), load_config(LaunchConfig, None, launch), here
    )
