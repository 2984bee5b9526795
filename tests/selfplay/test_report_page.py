"""The page of a self-play in a real browser: it complains of nothing, asks for nothing, and can be used."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from megatron_srpo.report.self_play_compare import write_self_play_comparison
from megatron_srpo.selfplay.memory import MemoryBank
from megatron_srpo.selfplay.report import write_self_play_report
from tests.report.test_pages import HOSTILE, choose
from tests.selfplay.made_up import DIMENSION, question, row, write_lines, write_self_play
from tools.chromium import Chromium, find_chromium

pytest.importorskip("sklearn", reason="needs the extra self-play")
pytestmark = pytest.mark.skipif(find_chromium() is None, reason="needs Chromium (make install-chromium)")

SHOWN = "[...document.querySelectorAll('#nearest article')].filter((it) => it.offsetHeight > 0)"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three iterations with eight valid questions each, of which two and six recur."""
    folder = write_self_play(tmp_path_factory.mktemp("runs") / "play")
    for role in ("challenger", "solver"):
        page = folder / "iteration_02" / role / "report.html"
        page.parent.mkdir()
        page.write_text(f"<title>{role} 2</title>")
    return write_self_play_report(folder)


def test_it_opens_from_disk_without_complaint_or_request(page: Chromium) -> None:
    assert page.problems == [] and page.requests == []
    heights = page.evaluate(
        "[...document.querySelectorAll('.card svg')].map((it) => it.getBoundingClientRect().height)"
    )
    assert len(heights) == 14 and min(heights) > 100
    text = page.evaluate("document.body.innerText")
    for words in (
        "Local Diversity Illusion: present.",
        "0.250 → 0.400",
        "25% → 75%",
        "batch repetition skill",
    ):
        assert words in text


def test_the_heat_map_holds_the_shares(page: Chromium) -> None:
    cells = page.evaluate("[...document.querySelectorAll('.heat td')].map((it) => it.textContent)")
    assert cells[:6] == ["100.0%", "25.0%", "100.0%", "50.0%", "75.0%", "100.0%"], "near-equal questions"
    assert cells[6:] == ["100.0%", "25.0%", "100.0%", "50.0%", "50.0%", "100.0%"], "shares of clusters"
    colours = page.evaluate(
        "[...document.querySelectorAll('.heat td')].map((it) => getComputedStyle(it).backgroundColor)"
    )
    assert colours[0] == colours[2] != colours[1], "as dark as the share is large"


def test_the_reports_of_the_runs_are_linked(browser: Chromium, page: Chromium) -> None:
    links = page.evaluate("[...document.querySelectorAll('a')].map((it) => it.getAttribute('href'))")
    assert links == ["iteration_02/challenger/report.html", "iteration_02/solver/report.html"]
    page.evaluate("document.querySelectorAll('a')[1].href")
    browser.open(Path(page.evaluate("document.querySelectorAll('a')[1].href").removeprefix("file://")))
    assert browser.evaluate("document.title") == "solver 2"


def test_nearest_questions_are_searched(page: Chromium) -> None:
    assert page.evaluate("document.getElementById('near-count').textContent") == "16 of 16"
    choose(page, "near-iteration", "3")
    assert page.evaluate(f"{SHOWN}.length") == 8
    search(page, "apples3x5 ann2x2")
    assert page.evaluate("document.getElementById('near-count').textContent") == "1 of 16"
    assert "cosine 1.000" in page.evaluate(f"{SHOWN}[0].innerText")
    search(page, "no such words")
    assert page.evaluate("document.getElementById('near-count').textContent") == "none fits"


def search(page: Chromium, words: str) -> None:
    choose(page, "near-words", words)


def test_nearest_questions_are_ordered(page: Chromium) -> None:
    cosines = f"{SHOWN}.map((it) => Number(it.dataset.cosine))"
    choose(page, "near-order", "farthest in skill first")
    assert page.evaluate(cosines) == [0.0] * 8 + [1.0] * 8
    choose(page, "near-order", "nearest in skill first")
    assert page.evaluate(cosines) == [1.0] * 8 + [0.0] * 8


def test_without_scripts_everything_can_be_read(browser: Chromium, report: Path) -> None:
    browser.allow_scripts(False)
    try:
        browser.open(report)
        assert browser.problems == []
        assert browser.evaluate("document.getElementById('near-controls').offsetHeight") == 0
        assert browser.evaluate(f"{SHOWN}.length") == 16
    finally:
        browser.allow_scripts(True)


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_any_window_fits_light_or_dark(browser: Chromium, report: Path, width: int, dark: bool) -> None:
    browser.resize(width, 800)
    browser.darken(dark)
    try:
        browser.open(report)
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
    finally:
        browser.resize(1280, 900)
        browser.darken(False)


def test_hostile_text_stays_text(browser: Chromium, tmp_path: Path) -> None:
    """In questions, code, labels and ids, and in what the iterations' rows are named."""
    text = "\n".join(HOSTILE)
    bank = MemoryBank.open(tmp_path / "memory", text, DIMENSION)
    for iteration in (1, 2):
        entry = question(iteration, 0, 0)
        hostile = dataclasses.replace(entry, id=f"{iteration}{text}", question=text, label=text, code=text)
        bank.append(iteration, [hostile], np.eye(DIMENSION, dtype=np.float32)[:1])
        pool = [
            {"id": text, "question": text, "own_answer": text, "share": text, "label": text, "valid": True}
        ]
        write_lines(tmp_path / f"iteration_{iteration:02d}" / "questions.jsonl", pool)
    rows = [{**row(number, 0.2), f"accuracy/after/{HOSTILE[0]}": 0.5, text: text} for number in (1, 2)]
    write_lines(tmp_path / "iterations.jsonl", rows)
    (tmp_path / "config.yaml").write_text(f"reward: {HOSTILE[0]!r}\nname: {HOSTILE[2]!r}\n")
    browser.open(write_self_play_report(tmp_path))
    assert browser.problems == [] and browser.requests == []
    assert browser.evaluate("window.hacked") is None
    assert browser.evaluate("document.querySelectorAll('img, iframe, base, svg[onload]').length") == 0
    assert browser.evaluate("document.scripts.length") == 1
    seen = browser.evaluate(f"{SHOWN}[0].innerText")
    for words in (HOSTILE[0], HOSTILE[2], "nul ␀ bell ␇ escape ␛", "⟨U+202E⟩ override", HOSTILE[10]):
        assert words in seen


def test_a_comparison_opens_without_complaint_or_request(
    browser: Chromium, report: Path, tmp_path: Path
) -> None:
    groups = {HOSTILE[0]: [report.parent], "R-Diverse": [report.parent]}
    browser.open(write_self_play_comparison(groups, tmp_path)["html"])
    assert browser.problems == [] and browser.requests == []
    assert browser.evaluate("document.querySelector('.figure svg').getBoundingClientRect().height") > 500
    assert HOSTILE[0] in browser.evaluate("document.body.innerText")
