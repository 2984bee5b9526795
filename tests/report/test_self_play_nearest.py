"""Which nearest old questions the page shows, and that their texts stay texts."""

from typing import Any

from megatron_srpo.report.self_play_nearest import chosen, nearest_section


def near(iteration: int, place: int, cosine: float, text: str = "what") -> dict[str, Any]:
    """A row of nearest.jsonl."""
    texts = {"question": text, "code": text, "old_question": text, "old_code": text}
    places = {"iteration": iteration, "old_iteration": 1, "id": f"{iteration}/{place}", "old_id": "1/0"}
    return {**texts, **places, "cosine": cosine, "bleu": 0.25}


def test_few_rows_are_all_shown_by_iteration_and_cosine() -> None:
    rows = [near(3, 0, 0.1), near(2, 0, 0.2), near(2, 1, 0.9)]
    assert [row["id"] for row in chosen(rows)] == ["2/1", "2/0", "3/0"]


def test_of_many_the_ends_and_an_even_sample() -> None:
    rows = [near(2, place, 1 - place / 100) for place in range(90)] + [near(3, 0, 0.5)]
    places = [int(row["id"].split("/")[1]) for row in chosen(rows, limit=24) if row["iteration"] == 2]
    assert places[:4] == [0, 1, 2, 3] and places[-4:] == [86, 87, 88, 89]
    assert places[4:8] == [4, 24, 45, 65]


def test_every_iteration_is_shown() -> None:
    rows = [near(t, place, 0.5) for t in range(2, 102) for place in range(9)]
    assert {row["iteration"] for row in chosen(rows, limit=10)} == set(range(2, 102))
    assert len(chosen(rows, limit=10)) == 600


def test_texts_are_escaped_and_cut() -> None:
    html = nearest_section([near(2, 0, 0.5, "<script>" + "x" * 5000)])
    assert "<script>" not in html and "&lt;script&gt;" in html
    assert "characters left out" in html and len(html) < 12_000


def test_without_rows_the_section_says_why() -> None:
    assert "needs valid questions of two iterations" in nearest_section([])
