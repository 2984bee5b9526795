"""Fencing tokens: of all processes that believe a run folder is theirs, the last to claim it is right.

A run that is started again elsewhere does not know whether its predecessor is dead or only cut off. So every
start creates the next file of ``fence/00000001``, ``00000002``, ... with O_EXCL, and whoever holds the
highest number owns the folder. The others find that out before their next write and stop.

What a shared file system cannot give is a write that happens only while the number is the highest: between
looking and writing, a holder may be frozen and lose its token. That is harmless enough. Checkpoints are
written under a name with the token in it and appear by a rename, so a late one is a whole checkpoint of the
same run, which the owner replaces when it gets there; nobody ever writes into another's temporary folder.
A line of metrics or a status has a window of milliseconds. Where directory listings are cached (NFS: up to a
minute by default), a newer token is seen that much later.
"""

import json
import os
import re
import shutil
import socket
import uuid
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from megatron_srpo import platform
from megatron_srpo.errors import CheckpointError, FenceError

FOLDER = "fence"

_TOKEN = re.compile(r"\d{8}")
_TEMPORARY = re.compile(r"\..+?(?:\.(\d{8}))?(?:\.old)?\.partial")
#: Token files that stay, for people to read: who ran here, when.
_KEPT = 5


@dataclass(frozen=True)
class Fence:
    """The token of this run's holder, the same on all its ranks.

    Attributes:
        run_folder: what it guards.
        number: of the token; also counts how often the run was started.
        mark: that no other token has, also not one of a folder that was removed and made anew.
    """

    run_folder: Path
    number: int
    mark: str = ""

    @property
    def name(self) -> str:
        """The token as it stands in names of temporary folders."""
        return f"{self.number:08d}"

    def check(self) -> None:
        """Do nothing while this is the highest token.

        Raises:
            FenceError: another process has taken the folder over, or it is gone or cannot be read.
        """
        folder = self.run_folder / FOLDER
        try:
            newest = max(_tokens(folder), default=0)
        except OSError as error:
            raise FenceError(
                f"{self.run_folder} may no longer be this run's: {folder} cannot be read ({error}); nothing "
                "more was written there. Continue with --resume when it can be read again"
            ) from error
        if newest > self.number:
            raise FenceError(
                f"{self.run_folder} was taken over by {_holder(folder, newest)}, so this one (token "
                f"{self.name}) has stopped and writes nothing more there; follow the other one"
            )
        if newest < self.number or _mark(folder, self.number) != self.mark:
            raise FenceError(f"{folder} has lost token {self.name}: something else changed the folder")

    def held(self) -> bool:
        """Say whether :meth:`check` would pass."""
        try:
            self.check()
        except FenceError:
            return False
        return True

    def remove_leftovers(self, folder: Path) -> None:
        """Remove what former holders left half-written in a folder of the run."""
        for path in folder.iterdir() if folder.is_dir() else ():
            found = _TEMPORARY.fullmatch(path.name)
            if found and int(found[1] or 0) < self.number:
                shutil.rmtree(path, ignore_errors=True)
                with suppress(OSError):
                    path.unlink()


def claim(run_folder: Path) -> Fence:
    """Take a run folder over from whoever held it; make it where it is missing.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    folder = run_folder / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mark = uuid.uuid4().hex
        number = _create_next(folder, mark)
        for old in sorted(_tokens(folder))[:-_KEPT]:
            _path(folder, old).unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"cannot write: {error}; choose another output_dir") from error
    return Fence(run_folder, number, mark)


def _create_next(folder: Path, mark: str) -> int:
    number = max(_tokens(folder), default=0)
    while True:
        number += 1
        with suppress(FileExistsError), _path(folder, number).open("x", encoding="utf-8") as file:
            holder = {
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "job": platform.job_name(),
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                "mark": mark,
            }
            file.write(json.dumps(holder) + "\n")
            file.flush()
            os.fsync(file.fileno())
            newest = max(_tokens(folder), default=number)
            if newest < number + _KEPT:
                return number
            # So far behind, a number may have been taken and removed between the look and the creation, and
            # this file may be gone again, too.
            _path(folder, number).unlink(missing_ok=True)
            number = newest


def _tokens(folder: Path) -> list[int]:
    return [int(name) for name in os.listdir(folder) if _TOKEN.fullmatch(name)]


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:08d}"


def _mark(folder: Path, number: int) -> str | None:
    """Return the mark of a token; None where it cannot be read."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads(_path(folder, number).read_text(encoding="utf-8"))["mark"])
    return None


def _holder(folder: Path, number: int) -> str:
    """Describe a token's holder; its file may still be empty."""
    text = f"another process (token {number:08d}"
    with suppress(OSError, ValueError, KeyError, TypeError):
        said = json.loads(_path(folder, number).read_text(encoding="utf-8"))
        job = f", job {said['job']}" if said["job"] else ""
        text += f": host {said['host']}, pid {said['pid']}{job}, since {said['time']}"
    return f"{text})"
