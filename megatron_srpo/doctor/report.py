"""The findings as a table or as JSON."""

import dataclasses
import json
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from megatron_srpo.doctor.types import Check

_MARKS = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "fail": "[bold red]FAIL[/]"}


def exit_code(checks: Sequence[Check]) -> int:
    """Return 1 when a check failed, else 0; warnings do not count."""
    return int(any(check.status == "fail" for check in checks))


def to_json(checks: Sequence[Check]) -> str:
    """Write the checks as ``{"ok": bool, "checks": [{name, status, detail, remedy}]}``."""
    rows = [dataclasses.asdict(check) for check in checks]
    return json.dumps({"ok": exit_code(checks) == 0, "checks": rows}, indent=2)


def print_report(checks: Sequence[Check], console: Console | None = None) -> int:
    """Print a table with a remedy under every finding and a closing count; return :func:`exit_code`."""
    console = console or Console()
    table = Table(box=None, pad_edge=False, show_header=False)
    for check in checks:
        table.add_row(_MARKS[check.status], escape(check.name), escape(check.detail))
        if check.remedy:
            table.add_row("", "", f"[cyan]-> {escape(check.remedy)}[/]")
    console.print(table)
    failed, warned = (sum(check.status == status for check in checks) for status in ("fail", "warn"))
    console.print(f"{len(checks)} checks: {failed} failed, {warned} warnings")
    return exit_code(checks)
