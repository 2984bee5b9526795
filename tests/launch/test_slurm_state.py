"""A job's true state from what Slurm's commands say. The texts are what Slurm 22.05 printed."""

from collections.abc import Sequence

import pytest

from megatron_srpo.launch.shell import Answer, Shell
from megatron_srpo.launch.slurm_state import JobState, job_state

GONE = Answer(1, "", "slurm_load_jobs error: Invalid job id specified\n")
DOWN = Answer(1, "", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n")
NOTHING = Answer(0, "", "")


class Recorded(Shell):
    """Answers each of Slurm's commands with a recorded text."""

    def __init__(self, squeue: Answer, sacct: Answer = NOTHING, scontrol: Answer = GONE) -> None:
        super().__init__()
        self.answers = {"squeue": squeue, "sacct": sacct, "scontrol": scontrol}

    def ask(self, command: Sequence[str], given: str = "") -> Answer:
        return self.answers[command[0]]


def accounting(*rows: str) -> Answer:
    return Answer(0, "".join(f"{row}\n" for row in rows), "")


def test_the_queue_is_believed_first() -> None:
    """While a job waits for its next slice, accounting calls it NODE_FAIL."""
    shell = Recorded(
        Answer(0, "PENDING|BeginTime||0:00|4:00:00\n", ""), accounting("NODE_FAIL|0:0|node[1-3]|00:01:00")
    )
    state = job_state("7", shell)
    assert state == JobState("PENDING", "BeginTime", "", "0:00", "4:00:00")
    assert not state.ended


def test_a_running_job_has_nodes_and_time() -> None:
    state = job_state("7", Recorded(Answer(0, "RUNNING|None|node[1-3]|12:10|3:47:50\n", "")))
    assert state == JobState("RUNNING", "", "node[1-3]", "12:10", "3:47:50")


@pytest.mark.parametrize("squeue", [GONE, NOTHING])
@pytest.mark.parametrize(
    ("row", "name", "status", "succeeded"),
    [
        ("COMPLETED|0:0|node1|00:01:00", "COMPLETED", 0, True),
        ("FAILED|3:0|node1|00:01:00", "FAILED", 3, False),
        ("CANCELLED by 1000|0:15|node1|00:01:00", "CANCELLED", 143, False),
        ("TIMEOUT|0:0|node1|04:00:00", "TIMEOUT", 0, False),
        ("NODE_FAIL|0:0|node1|00:10:00", "NODE_FAIL", 0, False),
        ("PREEMPTED|0:0|node1|00:10:00", "PREEMPTED", 0, False),
    ],
)
def test_accounting_has_the_last_word(
    squeue: Answer, row: str, name: str, status: int, succeeded: bool
) -> None:
    state = job_state("7", Recorded(squeue, accounting(row)))
    assert (state.name, state.exit_status, state.ended, state.succeeded) == (name, status, True, succeeded)


def test_accounting_that_lags_behind_is_asked_again() -> None:
    assert not job_state("7", Recorded(GONE, accounting("RUNNING|0:0|node1|00:01:00"))).ended


def test_an_ended_state_in_the_queue_waits_for_its_exit_status() -> None:
    assert (
        job_state("7", Recorded(Answer(0, "FAILED|NonZeroExitCode|node1|1:00|0:00\n", ""))).name
        == "COMPLETING"
    )


def test_without_accounting_the_controller_is_asked() -> None:
    scontrol = Answer(0, "JobId=7 JobName=x JobState=FAILED Reason=None ExitCode=75:0 NodeList=node1\n", "")
    state = job_state("7", Recorded(GONE, Answer(1, "", "Slurm accounting storage is disabled"), scontrol))
    assert (state.name, state.exit_status, state.nodes) == ("FAILED", 75, "node1")


def test_a_controller_that_is_down_decides_nothing() -> None:
    state = job_state("7", Recorded(DOWN, accounting("FAILED|1:0|node1|00:01:00")))
    assert state.name == "UNKNOWN" and not state.ended


def test_a_job_that_nobody_knows_is_unknown() -> None:
    assert job_state("7", Recorded(GONE, NOTHING, GONE)).name == "UNKNOWN"
