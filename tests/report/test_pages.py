"""The pages in a real browser: they open from disk, complain of nothing, ask for nothing, and can be used."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from megatron_srpo.report.compare import write_comparison_page
from megatron_srpo.report.html import write_report
from megatron_srpo.report.samples import SamplesFile
from tests.report.synthetic import sample, write_run
from tools.chromium import Chromium, ChromiumError, find_chromium

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="needs Chromium (make install-chromium)")

HOSTILE = (
    "<script>window.hacked = 1</script>",
    "</pre></article></div><img src=http://192.0.2.1/x.png onerror='window.hacked = 1'>",
    "<iframe src='http://192.0.2.1/'></iframe><svg onload='window.hacked = 1'>",
    '"><style>*{display:none}</style><base href="http://192.0.2.1/">',
    "<!-- ]]> &lt;b&gt; javascript:window.hacked=1",
    "nul \x00 bell \x07 escape \x1b[31m red",
    "right to left \u202e override \u2066 isolate",
    "lone surrogate \ud83d and \ufffe\uffff",
    "שלום عليكم 你好 👩‍🚀 Z̸̛a̴l̷g̴o̷",
    "\u2028\u2029 separators \ufeff mark",
    "`${window.hacked = 1}` {{7*7}}",
)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve steps of four rollouts: even ones right on the policy branch, odd ones wrong and distilled."""
    return write_run(tmp_path_factory.mktemp("runs") / "srpo-seed0", steps=12, evaluate_every=4)


@pytest.fixture(scope="module")
def report(run_dir: Path) -> Path:
    return write_report(run_dir)


def choose(page: Chromium, control: str, value: str) -> None:
    """Choose as a reader does: the control takes the value and says that it changed."""
    page.evaluate(
        f"(() => {{ const it = document.getElementById('{control}'); it.value = {value!r}; "
        "it.dispatchEvent(new Event(it.type === 'search' ? 'input' : 'change')); })()"
    )


def count(page: Chromium) -> str:
    return str(page.evaluate("document.getElementById('count').textContent"))


def current(page: Chromium) -> dict[str, Any]:
    """The data of the one rollout that is seen."""
    seen = page.evaluate(
        "[...document.querySelectorAll('#view article')].filter((it) => it.offsetHeight > 0)"
        ".map((it) => ({...it.dataset, text: it.innerText}))"
    )
    assert len(seen) == 1
    return dict(seen[0])


def test_a_report_opens_from_disk_without_complaint_or_request(page: Chromium) -> None:
    assert page.problems == []
    assert page.requests == []
    drawn = page.evaluate(
        "[...document.querySelectorAll('.card svg')].map((it) => it.getBoundingClientRect().height)"
    )
    assert len(drawn) == 21 and min(drawn) > 100
    assert "Accuracy against training time" in page.evaluate("document.body.innerText")


def test_the_driver_notices_errors_and_requests(browser: Chromium, tmp_path: Path) -> None:
    """Or the tests above could not fail."""
    bad = tmp_path / "bad.html"
    bad.write_text("<img src='missing.png'><script>console.error('seen'); nonsense()</script>")
    browser.open(bad)
    assert any("seen" in problem for problem in browser.problems)
    assert any("nonsense" in problem for problem in browser.problems)
    assert [address.rsplit("/", 1)[1] for address in browser.requests] == ["missing.png"]
    with pytest.raises(ChromiumError, match="nothing is not defined"):
        browser.evaluate("nothing.at.all")


def test_one_rollout_is_seen_and_the_newest_first(page: Chromium) -> None:
    assert count(page) == "1 of 48"
    seen = current(page)
    assert seen["step"] == "12"
    assert "What is gcd(24, 36)?" in seen["text"] and "So the answer is 12 ." in seen["text"]


@pytest.mark.parametrize(
    ("control", "value", "expected"),
    [
        ("by-step", "=7", "1 of 4"),
        ("by-route", "=distill", "1 of 24"),
        ("by-right", "=1", "1 of 24"),
        ("by-source", "=gcd", "1 of 48"),
        ("words", "gcd/71", "1 of 1"),
        ("words", "demonstration 24 = 2", "1 of 24"),
        ("words", "no such words", "none fits"),
    ],
)
def test_filters(page: Chromium, control: str, value: str, expected: str) -> None:
    choose(page, control, value)
    assert count(page) == expected
    rows = page.evaluate("document.querySelectorAll('#list button').length")
    assert rows == (0 if expected == "none fits" else int(expected.split()[-1]))


def test_filters_hold_together(page: Chromium) -> None:
    choose(page, "by-step", "=7")
    choose(page, "by-right", "=0")
    assert count(page) == "1 of 2"
    seen = current(page)
    assert (seen["step"], seen["right"], seen["route"]) == ("7", "0", "distill")
    assert "Feedback of the verifier: expected 12" in seen["text"]
    assert "Demonstration, shown to the teacher only" in seen["text"]


def test_order_by_divergence(page: Chromium) -> None:
    choose(page, "order", "largest divergence")
    means = page.evaluate("[...document.querySelectorAll('#list .mean')].map((it) => Number(it.textContent))")
    assert means == sorted(means, reverse=True) and means[0] > 0
    assert current(page)["route"] == "distill"


def test_keys_walk_through_the_rollouts(page: Chromium) -> None:
    page.evaluate("document.getElementById('rollouts').scrollIntoView()")
    for key, place in (("j", 2), ("ArrowDown", 3), ("k", 2), ("ArrowUp", 1), ("ArrowUp", 1)):
        page.press(key)
        assert count(page) == f"{place} of 48", key
    page.press("/")
    assert page.evaluate("document.activeElement.id") == "words"
    page.press("j")
    assert count(page) == "none fits", "in the search field a letter is a letter"


def test_the_colour_of_tokens_can_be_switched(page: Chromium) -> None:
    choose(page, "by-route", "=distill")
    page.evaluate("document.getElementById('rollouts').scrollIntoView()")
    token = "document.querySelector('.current s:not(.d0):not(.w0):not(.e0)')"
    colours = []
    for measure in ("d", "w", "e"):
        assert page.evaluate(f"document.getElementById('by-{measure}').checked")
        colours.append(page.evaluate(f"getComputedStyle({token}).backgroundColor"))
        page.press("c")
    assert len(set(colours)) == 3
    assert page.evaluate("document.getElementById('by-d').checked"), "and round again"
    assert "divergence" in page.evaluate(f"{token}.title")


def test_a_rollout_has_an_address(browser: Chromium, report: Path) -> None:
    browser.open(report, fragment="r5")
    assert page_id(browser) == "r5"


def page_id(page: Chromium) -> str:
    return str(page.evaluate("document.querySelector('article.current').id"))


def test_without_scripts_everything_can_be_read(browser: Chromium, report: Path) -> None:
    browser.allow_scripts(False)
    try:
        browser.open(report)
        assert browser.problems == []
        assert browser.evaluate("document.getElementById('controls').offsetHeight") == 0
        browser.evaluate("document.querySelectorAll('details').forEach((it) => { it.open = true })")
        seen = "[...document.querySelectorAll('article')].filter((it) => it.offsetHeight > 0).length"
        assert browser.evaluate(seen) == 48
        token = "document.querySelector('s.d8, s.d7, s.d6, s.d5')"
        coloured = browser.evaluate(f"getComputedStyle({token}).backgroundColor")
        assert coloured != "rgba(0, 0, 0, 0)", "colours need no script"
    finally:
        browser.allow_scripts(True)


def test_hostile_text_stays_text(browser: Chromium, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=2)
    text = "\n".join(HOSTILE)
    one = dataclasses.replace(
        sample(3, 1),
        **{name: text for name in ("prompt", "prompt_id", "source", "demonstration", "feedback", "error")},
        tokens=HOSTILE,
        **{name: (0.3,) * len(HOSTILE) for name in ("weights", "divergence", "teacher_entropy")},
        finish_reason=text,
    )
    SamplesFile(folder / "rollouts.jsonl").append(
        [one, dataclasses.replace(one, tokens=("x" * 2**20, *HOSTILE[1:]))]
    )
    browser.open(write_report(folder))
    assert browser.problems == [] and browser.requests == []
    assert browser.evaluate("window.hacked") is None
    assert browser.evaluate("document.querySelectorAll('img, iframe, base, svg[onload]').length") == 0
    assert browser.evaluate("document.scripts.length") == 1
    seen = current(browser)["text"]
    for words in (
        HOSTILE[0],
        HOSTILE[2],
        "nul ␀ bell ␇ escape ␛",
        "⟨U+202E⟩ override",
        HOSTILE[8],
        HOSTILE[10],
    ):
        assert words in seen
    assert browser.evaluate("document.querySelectorAll('#by-source option').length") == 3
    choose(browser, "words", "<script>window.hacked zalgo")
    choose(browser, "words", "<script>window.hacked")
    assert count(browser) == "1 of 2"


@pytest.mark.parametrize("width", [360, 800, 1600])
@pytest.mark.parametrize("dark", [False, True])
def test_any_window_fits_light_or_dark(browser: Chromium, report: Path, width: int, dark: bool) -> None:
    browser.resize(width, 800)
    browser.darken(dark)
    try:
        browser.open(report)
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (int(paper.split("(")[1].split(",")[0]) < 100) == dark
    finally:
        browser.resize(1280, 900)
        browser.darken(False)


def test_a_comparison_opens_without_complaint_or_request(
    browser: Chromium, run_dir: Path, tmp_path: Path
) -> None:
    other = write_run(tmp_path / "other", steps=12, evaluate_every=4, seed=1)
    browser.open(write_comparison_page([run_dir, other], tmp_path / "comparison.html"))
    assert browser.problems == [] and browser.requests == []
    text = browser.evaluate("document.body.innerText")
    assert "Comparison of 2 runs" in text and "seed 0" in text and "seed 1" in text
    assert browser.evaluate("document.querySelector('.figure svg').getBoundingClientRect().height") > 500


def test_thousands_of_rollouts_can_be_used(browser: Chromium, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=1)
    file = SamplesFile(folder / "rollouts.jsonl")
    for step in range(2, 502):
        file.append([sample(step, index) for index in range(4)])
    browser.open(write_report(folder))
    total = int(count(browser).split()[-1])
    assert total >= 1000
    choose(browser, "words", "gcd/31")
    assert 0 < int(count(browser).split()[-1]) < total
