"""Draw the pictures of docs/report.md anew: docs/images/report-*.png, from finished runs.

    python -m tools.report_screenshots runs/srpo-1 runs/grpo-1 ...

    python -m tools.report_screenshots --self-play runs/r-diverse-1     # of docs/self_play.md

The first run is shown, then the comparison of all; of a self-play, how diverse its questions are. The pages
are written anew, so the pictures show what this version writes. Needs Chromium (make install-chromium).
"""

import argparse
import io
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from megatron_srpo.errors import UserError
from megatron_srpo.report.compare import write_comparison_page
from megatron_srpo.report.html import write_report
from megatron_srpo.selfplay.report import write_self_play_report
from tools.chromium import Chromium, ChromiumError

IMAGES = Path(__file__).parents[1] / "docs" / "images"
WIDTH, HEIGHT = 1280, 900
COLOURS = 192  # of a picture: few enough for small files, enough for smooth edges


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pictures and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path, help="run folders; the first one's page is shown")
    parser.add_argument("--self-play", type=Path, metavar="FOLDER", help="folder of a self-play")
    parser.add_argument("--out", type=Path, default=IMAGES, help="folder for the pictures")
    given = parser.parse_args(arguments)
    if not given.runs and not given.self_play:
        parser.error("name run folders, or --self-play FOLDER")
    given.out.mkdir(parents=True, exist_ok=True)
    try:
        with Chromium(WIDTH, HEIGHT) as browser:
            if given.runs:
                draw_runs(browser, given.runs, given.out)
            if given.self_play:
                draw_self_play(browser, write_self_play_report(given.self_play), given.out)
    except (UserError, ChromiumError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def draw_runs(browser: Chromium, runs: Sequence[Path], out: Path) -> None:
    """Draw the pictures of runs: the first one's page, and the comparison of all."""
    draw_report(browser, write_report(runs[0]), out)
    with tempfile.TemporaryDirectory() as folder:
        page = write_comparison_page(runs, Path(folder) / "comparison.html")
        draw_comparison(browser, page, out)


def draw_self_play(browser: Chromium, page: Path, out: Path) -> None:
    """Draw how diverse the questions of a self-play are."""
    browser.open(page)
    top, bottom = top_of(browser, "#diversity"), top_of(browser, "#nearest-heading")
    save(browser, out / "self-play-diversity.png", top - 8, bottom - 16)


def draw_report(browser: Chromium, page: Path, out: Path) -> None:
    """Draw the head of a report, its length histograms, and the rollout browser by day and by night."""
    browser.open(page)
    accuracy = bottom_of(browser, ".tables")
    save(browser, out / "report-accuracy.png", 0, accuracy + 16)
    save(
        browser,
        out / "report-lengths.png",
        top_of(browser, ".charts.wide") - 60,
        bottom_of(browser, ".charts.wide"),
    )
    browser.evaluate(
        "(() => { const it = document.getElementById('order'); it.value = 'largest divergence'; "
        "it.dispatchEvent(new Event('change')); })()"
    )
    for name, dark in (("report-rollouts.png", False), ("report-rollouts-dark.png", True)):
        browser.darken(dark)
        save(browser, out / name, top_of(browser, "#samples") - 12, bottom_of(browser, "#rollouts") - 180)
    browser.darken(False)


def draw_comparison(browser: Chromium, page: Path, out: Path) -> None:
    """Draw a whole comparison."""
    browser.open(page)
    save(browser, out / "report-comparison.png", 0, bottom_of(browser, ".figure"))


def top_of(browser: Chromium, selector: str) -> float:
    """Return where an element begins, in CSS pixels from the top of the page."""
    return float(
        browser.evaluate(f"document.querySelector('{selector}').getBoundingClientRect().top + scrollY")
    )


def bottom_of(browser: Chromium, selector: str) -> float:
    """Return where an element ends."""
    return float(
        browser.evaluate(f"document.querySelector('{selector}').getBoundingClientRect().bottom + scrollY")
    )


def save(browser: Chromium, path: Path, top: float, bottom: float) -> None:
    """Write a strip of the page as a small PNG, and say how large it is."""
    browser.screenshot(path, 0, max(top, 0.0), WIDTH, bottom - max(top, 0.0))
    picture = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
    few = picture.quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    few.save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    sys.exit(main())
