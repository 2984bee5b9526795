"""The exact batch scripts that nemo-run would submit, against stored ones, and what the shell makes of them.

After an intended change: ``python -m tests.launch.test_script`` writes the stored ones anew; read their diff.
"""

import dataclasses
import re
import subprocess
import tempfile
from pathlib import Path

import pytest

from megatron_srpo.config.launch import LaunchConfig
from megatron_srpo.config.loader import load_config
from megatron_srpo.config.run import RunConfig
from megatron_srpo.launch.job import Job
from megatron_srpo.launch.script import role_files, setup_lines, trainer_script
from tests.launch.jobs import example_job

GOLDEN = Path(__file__).with_name("golden")
SHARED = ("job.sh", "guard.sh")

_SERVERS = ["rollout.engine=sglang", "parallel.tensor=2", "output_dir=runs/night"]
CASES: dict[str, tuple[list[str], list[str], str]] = {
    "one_node": (["ranks_per_node=4", "python=python"], ["parallel.tensor=2", "output_dir=runs/night"], ""),
    "rollout_nodes": (
        [
            "nodes=2",
            "rollout_nodes=2",
            "servers_per_node=2",
            "python=/lustre/srpo/bin/python",
            "setup=[module load cuda, source /lustre/srpo/bin/activate]",
            """environment={WANDB_API_KEY: "it's a $ecret", lower_case: 'two  words', NCCL_DEBUG: INFO}""",
            "slurm={account: lab, partition: gpu, time: 1-00:00:00, stop_before_s: 600}",
            "slurm.options={exclude: node7}",
        ],
        _SERVERS,
        "afterok:41",
    ),
    "container": (
        [
            "nodes=2",
            "rollout_nodes=1",
            "container={image: /images/srpo.sqsh, writable: true}",
            "container.mounts=[/lustre/models:/lustre/models:ro]",
            "container.arguments=[--no-container-mount-home]",
        ],
        _SERVERS,
        "",
    ),
}


def script_of(case: str) -> str:
    """Return a case's batch script, with names for what differs from run to run and what is shared by all."""
    # nemo-run takes seconds to import; the other tests of this folder need not wait for it.
    from megatron_srpo.launch.nemo import nemo_run
    from megatron_srpo.launch.slurm import batch_script

    run = nemo_run()
    launch, changes, dependency = CASES[case]
    with tempfile.TemporaryDirectory() as home, pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.config, "get_nemorun_home", lambda: home)
        patch.setenv("NEMORUN_HOME", home)
        text = batch_script(example_job(launch, changes), None, dependency)
    text = re.sub(r"[^\s,:=]+/experiments/night/night_\d+", "<experiment>", text)
    package = Path(run.__file__).parents[1]
    assert str(package) not in text
    for name in SHARED:
        shared = (Path(__file__).parents[2] / "megatron_srpo" / "launch" / name).read_text()
        assert shared.rstrip() in text, f"{name} is not in the script as it is"
        text = text.replace(shared.rstrip(), f"<{name}>")
    run_yaml = re.search(r"run.yaml\" <<'SRPO_END_OF_FILE'\n(.*?)\nSRPO_END_OF_FILE", text, re.S)
    assert run_yaml
    return text.replace(run_yaml[1], "<run.yaml>")


@pytest.mark.parametrize("case", CASES)
def test_the_batch_script_is_the_stored_one(case: str) -> None:
    pytest.importorskip("nemo_run", reason="needs nemo-run (make install-launch)")
    assert script_of(case) == (GOLDEN / f"{case}.sh").read_text()


def whole_script(job: Job) -> str:
    return setup_lines(job, packaged=True, job_folder="/jobs/1")


@pytest.mark.parametrize("case", CASES)
def test_the_shell_can_read_it(case: str) -> None:
    launch, changes, _ = CASES[case]
    job = example_job(launch, changes)
    for text in (whole_script(job), trainer_script(job), *role_files(job, packaged=True).values()):
        if text.startswith("output_dir:"):
            continue
        checked = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
        assert checked.returncode == 0, checked.stderr


def test_variables_keep_their_case_and_every_character() -> None:
    values = {"lower_Case": "two  words", "QUOTES": 'it\'s "$HOME" `date` \\n', "NEWLINE": "one\ntwo", "N": 1}
    job = example_job([], [])
    job = dataclasses.replace(job, launch=LaunchConfig(environment=values))
    role = role_files(job, packaged=False)["role.sh"].replace(str(job.workdir), "/")
    script = f'{role}\nprintf "%s\\0" "$lower_Case" "$QUOTES" "$NEWLINE" "$N"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split("\0")[:-1] == [str(value) for value in values.values()]


def test_the_configuration_travels_as_it_is() -> None:
    job = example_job(["nodes=2", "rollout_nodes=1"], ["rollout.engine=sglang", "data.seed=7"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.yaml")
        path.write_text(role_files(job, packaged=False)["run.yaml"])
        assert load_config(RunConfig, path) == job.run


def test_servers_and_ranks_ignore_what_slurm_tells_every_process() -> None:
    """Python's default is to die of SIGUSR1; torchrun's, to end its ranks within half a minute."""
    job = example_job(["nodes=2", "rollout_nodes=1"])
    for text in (trainer_script(job), role_files(job, packaged=False)["server.sh"]):
        assert "trap '' TERM USR1" in text
        assert text.index("trap ''") < text.index("exec ")


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name in CASES:
        (GOLDEN / f"{name}.sh").write_text(script_of(name))
        print(GOLDEN / f"{name}.sh")
