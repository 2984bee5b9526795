"""The frame of every page: self-contained, and able to load nothing and to run nothing but its own script.

Whatever a model, a data set or a config wrote is escaped before it enters a page (``text.py``); the policy in
the page's head is the second lock.
"""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path

import megatron_srpo
from megatron_srpo.report.records import write_whole
from megatron_srpo.report.style import css_variables
from megatron_srpo.report.text import visible

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def page(title: str, body: str, script: str = "") -> str:
    """Wrap ``body`` (already safe HTML) into a page.

    Args:
        script: our own, trusted; the only one that a browser will run in this page, known by its hash.
    """
    policy, tail = _POLICY, ""
    if script:
        policy += f"; script-src 'sha256-{_digest(script)}'"
        tail = f"<script>{script}</script>"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{visible(title)}</title><style>{css_variables()}{asset('page.css')}</style></head><body>{body}"
        f"<footer>megatron_srpo {visible(megatron_srpo.__version__)}</footer>{tail}</body></html>\n"
    )


def asset(name: str) -> str:
    """Return the text of a file that lies beside this module."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers_from: int = 1, strong: str | None = None
) -> str:
    """Return an HTML table of plain text cells.

    Columns from ``numbers_from`` on are right-aligned; rows with ``strong`` as second cell are emphasised.
    """

    def line(cells: Sequence[str], tag: str) -> str:
        marks = [' class="n"' if index >= numbers_from else "" for index in range(len(cells))]
        return "".join(f"<{tag}{m}>{visible(c)}</{tag}>" for m, c in zip(marks, cells, strict=True))

    classes = {True: ' class="mean"', False: ""}
    body = "".join(f"<tr{classes[row[1] == strong]}>{line(row, 'td')}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{line(head, "th")}</tr>{body}</table></div>'


def tile(label: str, value: str, note: str) -> str:
    """Return a headline number with its name and a small note below."""
    label, value, note = visible(label), visible(value), visible(note)
    return f'<div class="tile"><span>{label}</span><b>{value}</b><small>{note}</small></div>'


def tiles(numbers: Iterable[tuple[str, str, str] | None]) -> str:
    """Return headline numbers in a row; None is left out."""
    return f'<div class="tiles">{"".join(tile(*one) for one in numbers if one is not None)}</div>'


def chart_card(title: str, caption: str, svg: str) -> str:
    """Return a chart with its title and caption; ``svg`` is our own drawing."""
    note = f"<p>{visible(caption)}</p>" if caption else ""
    return f'<div class="card"><h3>{visible(title)}</h3>{note}{svg}</div>'


def write_page(path: Path, text: str) -> Path:
    """Write a page whole; return the path."""
    return write_whole(path, [text], errors="replace")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
