"""A folder in which servers on any machines say where they are; trainer and servers share its file system.

It holds ``server-000.json``, ``server-001.json``, ... (one :class:`Entry` per slot), ``api_key``, which only
its owner can read, and at the end of the run ``close``. Entries are replaced as a whole, so a reader never
sees half of one. Anyone may remove a file: a slot without one is empty.
"""

import contextlib
import json
import logging
import os
import re
import secrets
import time
import typing
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from megatron_srpo.config.sglang import is_url
from megatron_srpo.errors import EngineError

_FILE = re.compile(r"server-(\d{3,})\.json")
_KEY, _CLOSE = "api_key", "close"
#: Its first owner makes the key file and then writes the key: others may look in between.
_KEY_WAIT_S = 10.0
_KEY_POLL_S = 0.05

_log = logging.getLogger(__name__)

State = Literal["serving", "lost"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What is known of the server in one slot.

    Attributes:
        slot: its number, from 0.
        url: scheme, host and port.
        incarnation: unique; another one after every start.
        state: "lost" when whoever looks after it has seen it die.
        host, pid: machine and main process, for people.
        job: the scheduler's job; "" outside of one.
        started: when it began to serve, ISO 8601.
    """

    slot: int
    url: str
    incarnation: str
    state: State
    host: str
    pid: int
    job: str
    started: str


def new_incarnation() -> str:
    """Return an identity that no other start has."""
    return uuid.uuid4().hex


class Registry:
    """Reads and writes the folder.

    Args:
        folder: made where it is missing.
        on_bad: is told once of each file that cannot be used, and why.

    Raises:
        EngineError: the folder cannot be made.
    """

    def __init__(self, folder: str | Path, on_bad: Callable[[str], None] = _log.warning) -> None:
        self.folder = Path(folder).expanduser()
        self._on_bad = on_bad
        self._told: set[tuple[str, str]] = set()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EngineError(
                f"the servers' registry {self.folder} cannot be made ({error}); choose a folder that all "
                "machines share, in rollout.sglang.registry"
            ) from error

    @property
    def is_closed(self) -> bool:
        """Whether the run is over: nobody needs the servers any more."""
        return (self.folder / _CLOSE).exists()

    def entries(self) -> dict[int, Entry]:
        """Return what the files say, by slot. One that cannot be used counts as missing."""
        try:
            names = sorted(os.listdir(self.folder))
        except OSError as error:
            self._tell(self.folder.name, f"cannot be listed: {error}")
            return {}
        numbered = ((found, name) for name in names if (found := _FILE.fullmatch(name)))
        read = ((int(found[1]), self._read(int(found[1]), name)) for found, name in numbered)
        return {slot: entry for slot, entry in read if entry is not None}

    def entry(self, slot: int) -> Entry | None:
        """Return what one slot's file says; None for a missing file or one that cannot be used."""
        return self._read(slot, _file_name(slot))

    def serving(self) -> dict[int, Entry]:
        """Return the entries of servers that serve, as far as the files know."""
        return {slot: entry for slot, entry in self.entries().items() if entry.state == "serving"}

    def write(self, entry: Entry) -> None:
        """Replace the slot's file.

        Raises:
            EngineError: the file system refuses.
        """
        path = self.folder / _file_name(entry.slot)
        # Named by incarnation: two servers that fight for a slot must not write into one another's file.
        temporary = path.with_name(f".{path.name}.{entry.incarnation}")
        try:
            temporary.write_text(json.dumps(asdict(entry)) + "\n", encoding="utf-8")
            os.replace(temporary, path)
        except OSError as error:
            raise EngineError(f"{path} cannot be written ({error}); free or mend its file system") from error

    def mark_lost(self, slot: int, incarnation: str) -> None:
        """Say that a server is gone; nothing happens if the slot is another's by now.

        Raises:
            EngineError: as :meth:`write`.
        """
        entry = self.entry(slot)
        if entry is not None and entry.incarnation == incarnation:
            self.write(replace(entry, state="lost"))

    def api_key(self) -> str:
        """Return the key that all servers of this folder want; whoever comes first makes it.

        Raises:
            EngineError: the file cannot be made or read, or stays empty.
        """
        path = self.folder / _KEY
        try:
            with contextlib.suppress(FileExistsError):
                descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
                with open(descriptor, "w", encoding="utf-8") as file:
                    file.write(secrets.token_urlsafe(32) + "\n")
            return _read_patiently(path)
        except (OSError, UnicodeDecodeError) as error:
            raise EngineError(f"{path} cannot be used ({error}); remove it, or correct its rights") from error

    def _read(self, slot: int, name: str) -> Entry | None:
        try:
            text = (self.folder / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            self._tell(name, str(error))
            return None
        try:
            return parse_entry(text, slot)
        except EngineError as error:
            self._tell(name, str(error))
            return None

    def _tell(self, name: str, why: str) -> None:
        if (name, why) not in self._told:
            self._told.add((name, why))
            self._on_bad(f"SGLang registry {self.folder}: {name} is ignored: {why}")


def parse_entry(text: str, slot: int) -> Entry:
    """Read a slot's file.

    Raises:
        EngineError: it is not an entry of this slot; says why.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EngineError(f"not JSON ({error})") from error
    if not isinstance(found, dict):
        raise EngineError("not a JSON object")
    values = {field.name: _checked(found, field.name, field.type) for field in fields(Entry)}
    entry = Entry(**values)
    if entry.slot != slot:
        raise EngineError(f"it says slot {entry.slot}")
    if not is_url(entry.url):
        raise EngineError(f"url = {entry.url!r} is not http://host:port")
    if not entry.incarnation:
        raise EngineError("incarnation is empty")
    if entry.state not in typing.get_args(State):
        raise EngineError(f"state = {entry.state!r}; expected {' or '.join(typing.get_args(State))}")
    return entry


def _checked(found: dict[str, Any], name: str, kind: Any) -> Any:
    expected = int if kind is int else str
    if not isinstance(found.get(name), expected) or isinstance(found[name], bool):
        raise EngineError(f"{name} = {found.get(name)!r:.100}; expected {expected.__name__}")
    return found[name]


def _file_name(slot: int) -> str:
    return f"server-{slot:03d}.json"


def _read_patiently(path: Path) -> str:
    deadline = time.monotonic() + _KEY_WAIT_S
    while not (key := path.read_text(encoding="utf-8").strip()):
        if time.monotonic() > deadline:
            raise EngineError(f"{path} is empty; remove it, and start servers and run again")
        time.sleep(_KEY_POLL_S)
    return key
