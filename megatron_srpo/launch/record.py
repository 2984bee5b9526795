"""What is remembered of a launch, in the run folder: ``launch/job.json``."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import PurePosixPath

from megatron_srpo.errors import LaunchError
from megatron_srpo.launch.shell import Shell


@dataclass(frozen=True)
class JobRecord:
    """A launched run.

    Attributes:
        executor: ``slurm`` or ``local``.
        job_id: Slurm's number, or the number of the process that started the ranks.
        name: of the job.
        experiment: nemo-run's name for it (``nemo experiment status``).
        commit: of the code that travelled with it; empty when none did.
        submitted: time, ISO 8601.
    """

    executor: str
    job_id: str
    name: str
    experiment: str
    commit: str
    submitted: str


def record_path(run_folder: PurePosixPath) -> PurePosixPath:
    """Return where the record of a run lies."""
    return run_folder / "launch" / "job.json"


def write_record(record: JobRecord, run_folder: PurePosixPath, shell: Shell) -> None:
    """Remember a launch; one before it in the same folder is forgotten."""
    shell.write(record_path(run_folder), json.dumps(dataclasses.asdict(record), indent=2) + "\n")


def read_record(run_folder: PurePosixPath, shell: Shell) -> JobRecord:
    """Return what is remembered of a run.

    Raises:
        LaunchError: nothing, or something else lies there.
    """
    path = record_path(run_folder)
    text = shell.read(path)
    if text is None:
        raise LaunchError(f"{run_folder} holds no launched run ({path} is not there); give its output_dir")
    try:
        tree = json.loads(text)
        return JobRecord(**{field.name: str(tree[field.name]) for field in dataclasses.fields(JobRecord)})
    except (ValueError, KeyError, TypeError) as error:
        raise LaunchError(
            f"{path} is not the record of a launch ({error!r}); launch the run again"
        ) from error
