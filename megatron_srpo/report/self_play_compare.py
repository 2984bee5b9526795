"""Several self-plays side by side: one figure, one table (Markdown and CSV) and one page.

Self-plays are grouped by label (such as R-Zero and R-Diverse); within a label they differ by seed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_srpo.errors import DataError
from megatron_srpo.report.curves import Groups, draw_groups, group_label
from megatron_srpo.report.grouping import differing_settings, group_runs
from megatron_srpo.report.page import page, table, write_page
from megatron_srpo.report.run_data import RunData
from megatron_srpo.report.self_play_charts import ITERATIONS
from megatron_srpo.report.self_play_compare_table import HEAD, NOTE, csv_text, markdown_text, text_rows
from megatron_srpo.report.self_play_data import load_self_play
from megatron_srpo.report.style import inline_svg, rc_params, svg_text
from megatron_srpo.report.text import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURE_SIZE = (12.0, 10.5)
_PANELS = (
    ("heldout", "Held-out accuracy"),
    ("labels/accuracy", "Pseudo-labels right"),
    ("pool/valid", "Valid share of the pool"),
    ("recurrence/near", "Recurrence: near-equal question before"),
    ("recurrence/overlap", "Overlap with the clusters of the past"),
    ("challenger/repetition", "Batch repetition penalty"),
    ("skill/clusters", "Clusters of skills"),
    ("skill/effective_clusters", "Effective clusters of skills"),
    ("pairs/far_of_one_skill", "Pairs of one skill that look different"),
)
_LINES = "Lines: mean over the self-plays of a label. Bands: from the lowest to the highest."


def write_self_play_comparison(
    folders: Mapping[str, Sequence[str | Path]],
    out: str | Path,
    *,
    title: str = "Comparison of self-plays",
) -> dict[str, Path]:
    """Write figure, tables and page that compare self-plays.

    Args:
        folders: label to the folders of its self-plays, one per seed. What was measured of their questions is
            read, not measured anew.
        out: folder for the results; created if needed.

    Returns:
        The paths by kind: ``png``, ``svg``, ``markdown``, ``csv``, ``html``.

    Raises:
        DataError: no self-play, a folder that is none, or one without a finished iteration.
    """
    groups = {label: [_loaded(folder) for folder in own] for label, own in folders.items() if own}
    if not groups:
        raise DataError("there is no self-play to compare; give at least one folder")
    names = {kind: f"self_play.{kind}" for kind in ("png", "svg", "csv", "html")}
    paths = {kind: Path(out) / name for kind, name in {**names, "markdown": "self_play.md"}.items()}
    Path(out).mkdir(parents=True, exist_ok=True)
    svg = _figure(groups, paths["png"])
    paths["svg"].write_text(svg, encoding="utf-8")
    paths["markdown"].write_text(markdown_text(groups, title), encoding="utf-8", errors="replace")
    paths["csv"].write_text(csv_text(groups), encoding="utf-8", errors="replace")
    write_page(paths["html"], comparison_page(groups, svg, title))
    return paths


def group_self_plays(
    folders: Sequence[str | Path], labels: Sequence[str] | None = None
) -> dict[str, list[Path]]:
    """Group folders by their labels or, without labels, by their settings but for seeds.

    Raises:
        DataError: a folder that is not that of a self-play.
    """
    if labels is None:
        runs = [load_self_play(folder).run for folder in folders]
        return {label: [run.path for run in own] for label, own in group_runs(runs).items()}
    groups: dict[str, list[Path]] = {}
    for label, folder in zip(labels, folders, strict=True):
        groups.setdefault(label, []).append(Path(folder))
    return groups


def comparison_page(groups: Groups, svg: str, title: str) -> str:
    """Return the page with figure, table and the settings that differ."""
    body = (
        f'<h1>{visible(title)}</h1><p class="sub">{_LINES}</p>'
        f'<div class="figure">{inline_svg(svg, "compare")}</div>'
        f"<h2>Iterations</h2>{table(HEAD, text_rows(groups))}"
        f'<p class="note">{visible(NOTE)}</p>{_settings(groups)}{_folders(groups)}'
    )
    return page(title, body)


def _loaded(folder: str | Path) -> RunData:
    run = load_self_play(folder).run
    if not run.rows:
        raise DataError(f"{folder} holds no finished iteration; leave it out, or let it go on")
    return run


def _figure(groups: Groups, png: Path) -> str:
    """Draw once, write the PNG, and return the SVG text."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with matplotlib.rc_context(rc_params("self-plays")):
        figure = Figure(figsize=FIGURE_SIZE, layout=ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.1))
        draw_comparison(figure, groups)
        svg = svg_text(figure)
        figure.savefig(png, dpi=110, facecolor="white", metadata={"Software": None})
    return svg


def draw_comparison(figure: "Figure", groups: Groups) -> None:
    """Draw nine panels against iterations; a panel whose number no self-play has says so."""
    for axes, (metric, title) in zip(figure.subplots(3, 3).flat, _PANELS, strict=True):
        axes.set_title(title)
        draw_groups(axes, groups, metric, ITERATIONS)
        if not axes.lines:
            axes.text(0.5, 0.5, f"no run has {metric}", ha="center", transform=axes.transAxes, fontsize=9)
        elif metric != "heldout":
            axes.set_ylim(bottom=0)
    pairs = [zip(*axes.get_legend_handles_labels()[::-1], strict=True) for axes in figure.axes]
    entries = {label: handle for panel in pairs for label, handle in panel}
    if entries:
        columns = min(len(entries), 6)
        figure.legend(
            entries.values(), entries.keys(), loc="outside upper center", ncols=columns, fontsize=10
        )


def _settings(groups: Groups) -> str:
    differing = differing_settings(groups) if len(groups) > 1 else {}
    if not differing:
        return ""
    rows = [(key, *values) for key, values in differing.items()]
    inner = table(("setting", *groups), rows, numbers_from=len(groups) + 1)
    return f"<h2>Settings that differ</h2>{inner}"


def _folders(groups: Groups) -> str:
    lines = [
        f"<li>{visible(group_label(label, runs))}: "
        f"{', '.join(f'<code>{visible(run.name)}</code>' for run in runs)}</li>"
        for label, runs in groups.items()
    ]
    return f"<details><summary>Folders</summary><ul>{''.join(lines)}</ul></details>"
