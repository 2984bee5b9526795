"""The true state of a Slurm job through requeues: from squeue while it is there, from sacct afterwards.

In between a requeue, accounting says NODE_FAIL or PREEMPTED of a job that runs on; so it is believed only of
a job that has left the queue.
"""

from dataclasses import dataclass

from megatron_srpo.launch.shell import Shell

#: States of which a job does not come back.
_ENDED = frozenset(
    [
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "TIMEOUT",
    ]
)
_SQUEUE = "%T|%r|%N|%M|%L"
_SACCT = "State,ExitCode,NodeList,Elapsed"


@dataclass(frozen=True)
class JobState:
    """What Slurm says of a job.

    Attributes:
        name: Slurm's word, such as RUNNING; UNKNOWN when nobody can say (yet).
        reason: why it waits; empty when it does not.
        nodes: Slurm's list, such as ``node[1-3]``.
        elapsed: of the present slice, as Slurm writes it.
        left: until its time limit.
        exit_status: of an ended job.
    """

    name: str
    reason: str = ""
    nodes: str = ""
    elapsed: str = ""
    left: str = ""
    exit_status: int | None = None

    @property
    def ended(self) -> bool:
        """Whether it does not run any more, and will not again."""
        return self.name in _ENDED

    @property
    def succeeded(self) -> bool:
        """Whether it ended well."""
        return self.name == "COMPLETED" and self.exit_status == 0


def job_state(job_id: str, shell: Shell) -> JobState:
    """Ask Slurm for the state of a job. While the controller does not answer, it is UNKNOWN.

    Raises:
        LaunchError: there is no Slurm where the shell leads.
    """
    queued = shell.ask(["squeue", "--noheader", f"--jobs={job_id}", f"--format={_SQUEUE}"])
    lines = [line for line in queued.out.splitlines() if line.strip()]
    if lines:
        return _from_queue(lines[0])
    if queued.status and "Invalid job id" not in queued.error:
        return JobState("UNKNOWN", queued.error.strip()[-200:])
    return _from_accounting(job_id, shell) or _from_controller(job_id, shell) or JobState("UNKNOWN")


def _from_queue(line: str) -> JobState:
    name, reason, nodes, elapsed, left = (part.strip() for part in line.split("|", 4))
    # A job that has just ended stays in the list for a moment: without its exit status it is believed later.
    name = "COMPLETING" if name in _ENDED else name
    return JobState(name, "" if reason == "None" else reason, nodes, elapsed, left)


def _from_accounting(job_id: str, shell: Shell) -> JobState | None:
    answer = shell.ask(
        ["sacct", "--allocations", "--noheader", "--parsable2", f"--jobs={job_id}", f"--format={_SACCT}"]
    )
    rows = [line.split("|") for line in answer.out.splitlines() if line.count("|") == 3]
    if answer.status or not rows:
        return None
    state, code, nodes, elapsed = rows[-1]
    name = state.split()[0]  # "CANCELLED by 1000"
    if name not in _ENDED:
        return JobState("COMPLETING", nodes=nodes)  # accounting lags behind by a second or two
    return JobState(name, nodes=nodes, elapsed=elapsed, exit_status=_exit_status(code))


def _from_controller(job_id: str, shell: Shell) -> JobState | None:
    """Without accounting, the controller remembers ended jobs for some minutes."""
    answer = shell.ask(["scontrol", "show", "job", "--oneliner", job_id])
    if answer.status:
        return None
    fields = dict(word.split("=", 1) for word in answer.out.split() if "=" in word)
    name = fields.get("JobState", "UNKNOWN")
    return JobState(
        name, nodes=fields.get("NodeList", ""), exit_status=_exit_status(fields.get("ExitCode", ""))
    )


def _exit_status(code: str) -> int | None:
    """Read ``status:signal``; a signal counts as the shell counts it."""
    status, _, signal = code.partition(":")
    if not status.isdigit():
        return None
    return int(status) or (128 + int(signal) if signal.isdigit() and int(signal) else 0)
