"""The logs of a launched run: every role, every slice, followed while they grow."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from megatron_srpo.launch.shell import Shell

#: By role, the names of its logs: ``log-ranks_123_0.out`` (job 123, no restart), ``sbatch_ranks_123.out``,
#: ``server-node3_123_0.out``, ``server-slot0_124.out``, ``guard-node2_123_0.out``.
_NAMES = {
    "ranks": re.compile(r"log-ranks_\d+_(?P<restart>\d+)\.out"),
    "server": re.compile(r"server-(?P<place>.+?)_\d+(_(?P<restart>\d+))?\.out"),
    "batch": re.compile(r"sbatch_ranks_\d+\.out|guard-(?P<place>.+)_\d+_(?P<restart>\d+)\.out"),
}
#: ranks: the training. server: SGLang. batch: what the job itself says of nodes, servers and requeues.
ROLES = tuple(_NAMES)


@dataclass(frozen=True)
class LogFile:
    """One log: of a role, on a node where there are several, in one slice of the job.

    Attributes:
        label: what distinguishes it from others of the run, shown before its lines.
        size: bytes.
    """

    path: PurePosixPath
    role: str
    label: str
    size: int


def log_files(run_folder: PurePosixPath, shell: Shell, roles: Sequence[str] = ROLES) -> list[LogFile]:
    """List the logs of a run, the oldest first."""
    folder = run_folder / "launch" / "logs"
    script = 'cd "$1" 2>/dev/null && for f in $(ls -tr); do printf "%s %s\\n" "$(wc -c <"$f")" "$f"; done'
    found = []
    for line in shell.ask(["sh", "-c", script, "list", str(folder)]).out.splitlines():
        size, _, name = line.strip().partition(" ")
        for role in roles:
            match = _NAMES[role].fullmatch(name)
            if match:
                found.append(LogFile(folder / name, role, _label(role, match.groupdict()), int(size)))
    return found


def _label(role: str, parts: dict[str, str | None]) -> str:
    place, restart = parts.get("place"), parts.get("restart")
    again = f" restart {restart}" if restart not in (None, "0") else ""
    return f"{role}{f' {place}' if place else ''}{again}"


class Follower:
    """Shows what logs have gained since it was last asked. New files, of a later slice, are found.

    Args:
        show: is given whole lines, with the log's label before them.
        tail: lines of each file shown at first; None for all.
    """

    def __init__(
        self,
        run_folder: PurePosixPath,
        shell: Shell,
        roles: Sequence[str],
        show: Callable[[str], None],
        tail: int | None = None,
    ) -> None:
        self._folder, self._shell, self._roles = run_folder, shell, roles
        self._show, self._tail = show, tail
        self._seen: dict[PurePosixPath, int] = {}
        self._rest: dict[PurePosixPath, bytes] = {}
        self._first = True

    def look(self, last: bool = False) -> None:
        """Show what is new; lines without an end yet are held back but for the ``last`` time."""
        for log in log_files(self._folder, self._shell, self._roles):
            start = self._seen.get(log.path, 0)
            if log.size > start:
                self._seen[log.path] = log.size
                self._take(log, self._shell.read_part(log.path, start, log.size))
            if last and self._rest.get(log.path):
                self._take(log, b"\n")
        self._first = False

    def _take(self, log: LogFile, new: bytes) -> None:
        *lines, self._rest[log.path] = (self._rest.get(log.path, b"") + new).split(b"\n")
        if self._first and self._tail is not None:
            lines = lines[len(lines) - min(self._tail, len(lines)) :]
        for line in lines:
            # Of a line that was written over (a progress bar), its last state.
            text = line.rstrip(b"\r").rpartition(b"\r")[2].decode("utf-8", errors="replace")
            self._show(f"{log.label}: {text}")
