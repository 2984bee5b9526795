"""Tables of a self-play's page: a line per iteration, recurrence between iterations, links to the runs."""

from collections.abc import Mapping
from typing import Any

from megatron_srpo.report.html import REPORT_FILE
from megatron_srpo.report.page import table
from megatron_srpo.report.run_data import RunData
from megatron_srpo.report.self_play_data import SelfPlayData
from megatron_srpo.report.text import visible

# Heading, metric, form.
COLUMNS = (
    ("accuracy", "heldout", "{:.3f}"),
    ("labels right", "labels/accuracy", "{:.3f}"),
    ("valid", "pool/valid", "{:.3f}"),
    ("mean s", "pool/share_mean", "{:.3f}"),
    ("reward", "challenger/reward", "{:.3f}"),
    ("batch penalty", "challenger/repetition", "{:.4f}"),
    ("recur", "recurrence/near", "{:.3f}"),
    ("seen clusters", "recurrence/seen_clusters", "{:.3f}"),
    ("overlap", "recurrence/overlap", "{:.3f}"),
    ("clusters", "skill/clusters", "{:.0f}"),
    ("effective", "skill/effective_clusters", "{:.1f}"),
    ("hidden pairs", "pairs/far_of_one_skill", "{:.3f}"),
    ("memory", "memory/size", "{:,.0f}"),
)
_RUNS = ("challenger", "solver")


def iteration_table(run: RunData) -> str:
    """Return a line per iteration, with the numbers that a reader compares first."""
    if not run.rows:
        return ""
    rows = []
    for row in run.rows:
        values = [(row.get(metric), form) for _, metric, form in COLUMNS]
        rows.append([str(row["step"]), *("-" if v is None else form.format(v) for v, form in values)])
    return f'<div class="tables">{table(("iteration", *(name for name, _, _ in COLUMNS)), rows)}</div>'


def heat_maps(diversity: Mapping[str, Any]) -> str:
    """Return what iterations have in common: near-equal questions, and shares of clusters."""
    maps = [
        _heat_map(
            diversity.get("recurrence"),
            "Near-equal questions between iterations",
            "Share of the valid questions of an iteration (line) that have a near-equal question in an "
            "iteration (column); in its own: another one.",
        ),
        _heat_map(
            diversity.get("overlap"),
            "Clusters that iterations share",
            "Sum over clusters of the smaller of the two iterations' shares: 1 where they ask the same in "
            "the same proportions.",
        ),
    ]
    return f'<div class="tables">{"".join(maps)}</div>' if any(maps) else ""


def _heat_map(found: Mapping[str, Any] | None, title: str, note: str) -> str:
    if not found or not found["iterations"]:
        return ""
    iterations, shares = found["iterations"], found["shares"]
    head = "".join(f'<th class="n">in {number}</th>' for number in iterations)
    lines = "".join(
        f"<tr><th>of {number}</th>{''.join(map(_heat, row))}</tr>"
        for number, row in zip(iterations, shares, strict=True)
    )
    return (
        f'<div class="between"><h3>{title}</h3><p class="note">{note}</p>'
        f'<div class="scroll"><table class="heat"><tr><th></th>{head}</tr>{lines}</table></div></div>'
    )


def _heat(share: float | None) -> str:
    if share is None:
        return "<td></td>"
    colour = f"color-mix(in srgb,var(--orange) {round(80 * share)}%,transparent)"
    return f'<td class="n" style="background:{colour}">{share:.1%}</td>'


def links(data: SelfPlayData) -> str:
    """Return links to the reports of the two training runs of every iteration; those that are there."""
    lines = []
    for number, folder in data.folders.items():
        pages = [(name, folder / name / REPORT_FILE) for name in _RUNS]
        found = [
            f'<a href="{visible(path.relative_to(data.run.path).as_posix())}">{name.capitalize()}</a>'
            for name, path in pages
            if path.is_file()
        ]
        if found:
            lines.append(f"iteration {number}: {', '.join(found)}")
    return f'<p class="note">Reports of the runs: {" · ".join(lines)}</p>' if lines else ""
