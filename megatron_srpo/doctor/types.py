"""The result of one check."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what was looked at, e.g. ``"torch"``.
        status: ``"ok"``; ``"warn"`` for something that may slow down or limit a run; ``"fail"`` for
            something that would stop it.
        detail: what was found, with the value.
        remedy: what to do about it; empty when nothing needs doing.
    """

    name: str
    status: Status
    detail: str
    remedy: str = ""
