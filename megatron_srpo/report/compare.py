"""Several runs side by side: one figure, one table (Markdown and CSV) and one page.

Runs are grouped by label (usually the algorithm); within a label they differ by seed. Training seconds leave
out evaluation and checkpoints, as in the papers (docs/algorithms.md section 9).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_srpo.errors import DataError
from megatron_srpo.report.compare_figure import FIGURE_SIZE, draw_comparison
from megatron_srpo.report.compare_table import (
    HEAD,
    TABLE_NOTE,
    csv_table,
    markdown_table,
    summarize,
    text_rows,
)
from megatron_srpo.report.curves import Groups, group_label
from megatron_srpo.report.grouping import differing_settings, group_runs
from megatron_srpo.report.page import page, table, write_page
from megatron_srpo.report.run_data import RunData, load_run
from megatron_srpo.report.style import inline_svg, rc_params, svg_text
from megatron_srpo.report.text import visible

_LINES = "Lines: mean over the runs of a label. Bands: from the lowest to the highest run."


def write_comparison(
    runs: Mapping[str, Sequence[str | Path]], out_dir: str | Path, *, title: str = "Comparison"
) -> dict[str, Path]:
    """Write figure, tables and page that compare runs.

    Args:
        runs: label to run folders (one per seed).
        out_dir: folder for the results; created if needed.
        title: heading of page and table.

    Returns:
        The paths by kind: ``png``, ``svg``, ``markdown``, ``csv``, ``html``.

    Raises:
        DataError: no run, a folder that does not exist, or one without metrics.
    """
    groups = {label: [_loaded(folder) for folder in folders] for label, folders in runs.items() if folders}
    if not groups:
        raise DataError("there is no run to compare; give at least one run folder")
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    names = {"png": "compare.png", "svg": "compare.svg", "markdown": "compare.md", "csv": "compare.csv"}
    paths = {kind: out / name for kind, name in {**names, "html": "compare.html"}.items()}
    svg = _figure(groups, paths["png"])
    summaries = summarize(groups)
    paths["svg"].write_text(svg, encoding="utf-8")
    paths["markdown"].write_text(markdown_table(summaries, title), encoding="utf-8")
    paths["csv"].write_text(csv_table(summaries), encoding="utf-8")
    write_page(paths["html"], comparison_page(groups, svg, title))
    return paths


def write_comparison_page(folders: Sequence[str | Path], path: str | Path) -> Path:
    """Compare runs in one page; those that differ only by seed are taken together.

    Raises:
        DataError: a folder that does not exist, or one without metrics.
    """
    runs = [_loaded(folder) for folder in folders]
    groups, out = group_runs(runs), Path(path)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_page(out, comparison_page(groups, _figure(groups), f"Comparison of {len(runs)} runs"))
    return out


def comparison_page(groups: Groups, svg: str, title: str) -> str:
    """Return the page with figure, table and the settings that differ."""
    numbers = table(HEAD, text_rows(summarize(groups)), numbers_from=2, strong="mean")
    body = (
        f'<h1>{visible(title)}</h1><p class="sub">{_LINES} Seconds are training seconds: without evaluation '
        f"and checkpoints.</p><h2>Runs</h2>{numbers}"
        f'<p class="note">{visible(TABLE_NOTE)}</p>{_settings(groups)}{_folders(groups)}'
        f'<h2>Curves</h2><div class="figure">{inline_svg(svg, "compare")}</div>'
    )
    return page(title, body)


def _settings(groups: Groups) -> str:
    if len(groups) == 1:
        return ""
    heading = "<h2>Settings that differ</h2>"
    differing = differing_settings(groups)
    if not differing:
        return (
            f'{heading}<p class="missing">None but seeds and folders, as far as the configurations say.</p>'
        )
    rows = [(key, *values) for key, values in differing.items()]
    return heading + table(("setting", *groups), rows, numbers_from=len(groups) + 1)


def _folders(groups: Groups) -> str:
    names = {
        label: ", ".join(f"<code>{visible(run.name)}</code>" for run in runs)
        for label, runs in groups.items()
    }
    lines = [f"<li>{visible(group_label(label, groups[label]))}: {own}</li>" for label, own in names.items()]
    return f"<details><summary>Folders</summary><ul>{''.join(lines)}</ul></details>"


def _loaded(folder: str | Path) -> RunData:
    run = load_run(folder)
    if not run.rows:
        raise DataError(
            f"{folder} holds no metrics.jsonl with a finished step; leave it out or train it first"
        )
    return run


def _figure(groups: Groups, png_path: Path | None = None) -> str:
    """Draw once, write the PNG where one is wanted, and return the SVG text."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with matplotlib.rc_context(rc_params("compare")):
        figure = Figure(figsize=FIGURE_SIZE, layout=ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.1))
        draw_comparison(figure, groups)
        svg = svg_text(figure)
        if png_path is not None:
            figure.savefig(png_path, dpi=110, facecolor="white", metadata={"Software": None})
    return svg
