"""Commands on the machine that submits jobs: this one, or a login node by ssh."""

import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from megatron_srpo.errors import LaunchError

_TIMEOUT_S = 120.0
#: ssh's own exit status, when the connection failed.
_SSH_FAILED = 255
#: Without asking for passwords, which nobody would answer.
_SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15")


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    status: int
    out: str
    error: str


class Shell:
    """Runs commands there and reads files there.

    Args:
        address: of the login node, as ssh takes it; empty for this machine.
    """

    def __init__(self, address: str = "") -> None:
        self.address = address

    def ask(self, command: Sequence[str], given: str = "") -> Answer:
        """Run a command and return what it said, whatever its status.

        Args:
            given: its standard input.

        Raises:
            LaunchError: the command does not exist, does not end, or the login node is not reached.
        """
        done = self._run(command, given)
        return Answer(done.returncode, _text(done.stdout), _text(done.stderr))

    def do(self, command: Sequence[str], given: str = "") -> str:
        """Run a command that must succeed; return its output.

        Raises:
            LaunchError: it failed; says how.
        """
        answer = self.ask(command, given)
        if answer.status:
            raise LaunchError(
                f"{shlex.join(command)} failed with status {answer.status}: {answer.error.strip()[-500:]}"
            )
        return answer.out

    def read(self, path: PurePosixPath) -> str | None:
        """Return a file's text; None when there is no such file."""
        done = self._run(["cat", str(path)])
        return None if done.returncode else _text(done.stdout)

    def read_part(self, path: PurePosixPath, start: int, end: int) -> bytes:
        """Return a file's bytes from ``start`` up to ``end``; fewer where it is shorter or not there."""
        script = 'tail -c "+$2" "$1" | head -c "$3"'
        words = ["sh", "-c", script, "read", str(path), str(start + 1), str(end - start)]
        return self._run(words).stdout

    def write(self, path: PurePosixPath, text: str) -> None:
        """Write a file whole, with the folders above it.

        Raises:
            LaunchError: the file system refuses.
        """
        script = 'mkdir -p "$(dirname "$1")" && cat >"$1.new" && mv "$1.new" "$1"'
        self.do(["sh", "-c", script, "write", str(path)], text)

    def _run(self, command: Sequence[str], given: str = "") -> subprocess.CompletedProcess[bytes]:
        words = [*_SSH, self.address, shlex.join(command)] if self.address else list(command)
        try:
            done = subprocess.run(words, input=given.encode(), capture_output=True, timeout=_TIMEOUT_S)
        except FileNotFoundError as error:
            raise LaunchError(f"there is no command {words[0]!r} on this machine") from error
        except subprocess.TimeoutExpired as error:
            raise LaunchError(f"{shlex.join(words)} did not end within {_TIMEOUT_S:g} s") from error
        if self.address and done.returncode == _SSH_FAILED:
            raise LaunchError(f"cannot reach {self.address} by ssh: {_text(done.stderr).strip()[-300:]}")
        return done


def _text(said: bytes) -> str:
    return said.decode("utf-8", errors="replace")
