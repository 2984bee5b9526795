"""The verdicts on the two illusions: each of their answers, from curves that call for it."""

import pytest

from megatron_srpo.selfplay.verdicts import FEWEST_PAIRS, local_illusion, surface_illusion


@pytest.mark.parametrize(
    ("recurrence", "penalty", "state", "words"),
    [
        ({2: 0.2, 3: 0.6}, {1: 0.4, 2: 0.3, 3: 0.1}, "present", "the batches do not show it"),
        ({2: 0.2, 3: 0.6}, {2: 0.3, 3: 0.3}, "present", "the batches do not show it"),
        ({2: 0.2, 3: 0.6}, {2: 0.3, 3: 0.4}, "absent", "the batches show it too"),
        ({2: 0.2, 3: 0.24}, {2: 0.3, 3: 0.1}, "absent", "do not return to the past more and more"),
        ({2: 0.6, 3: 0.2}, {2: 0.3, 3: 0.1}, "absent", "do not return to the past more and more"),
        ({2: 0.2, 3: 0.5}, {2: 0.3, 3: 0.4}, "absent", "the batches show it too"),
        ({2: 0.5, 3: 0.5}, {2: 0.3, 3: 0.1}, "absent", "do not return to the past more and more."),
        ({2: 0.9, 3: 0.6}, {2: 0.3, 3: 0.1}, "steady", "but mostly ask what it asked"),
        ({2: 0.2}, {1: 0.4, 2: 0.3}, "open", "1 of the 2 needed"),
        ({2: 0.2, 3: 0.6}, {}, "open", "0 of the 2 needed"),
    ],
)
def test_local(recurrence: dict[int, float], penalty: dict[int, float], state: str, words: str) -> None:
    verdict = local_illusion(recurrence, dict.fromkeys(recurrence, 0.5), penalty, "bleu")
    assert verdict.state == state
    assert words in verdict.text


def test_the_local_verdict_tells_its_numbers() -> None:
    curves = {2: 0.2, 4: 0.6}, {2: 0.5, 4: 0.5}, {2: 0.3, 3: 0.2, 4: 0.1}
    text = local_illusion(*curves, "bleu").text
    assert text.startswith("Recurrence goes from 20.0% (iteration 2) to 60.0% (iteration 4)")
    assert "penalty (bleu) from 0.3000 to 0.1000" in text


@pytest.mark.parametrize(
    ("overlap", "state", "words"),
    [
        ({2: 0.4, 3: 0.8}, "present", "The overlap with the past goes from 40.0% (iteration 2) to 80.0%"),
        ({2: 0.9, 3: 0.6}, "steady", "from 90.0% (iteration 2) to 60.0% (iteration 3)"),
        ({2: 0.4, 3: 0.4}, "absent", "do not return to the past more and more"),
        ({2: 0.96, 3: 1.0}, "open", "alike from the start"),
    ],
)
def test_where_everything_recurs_the_overlap_decides(
    overlap: dict[int, float], state: str, words: str
) -> None:
    verdict = local_illusion({2: 0.97, 3: 1.0}, overlap, {2: 0.3, 3: 0.1})
    assert verdict.state == state
    assert words in verdict.text and "Nearly every question recurs from the start." in verdict.text


@pytest.mark.parametrize(
    ("far", "alike", "state"),
    [
        ({1: 0.1, 2: 0.8}, {1: 99, 2: FEWEST_PAIRS}, "present"),
        ({1: 0.9, 2: 0.5}, {1: 99, 2: 99}, "absent"),
        ({1: 0.9, 2: 0.1}, {1: 99, 2: FEWEST_PAIRS - 1}, "present"),
        ({1: 0.9}, {1: 3}, "open"),
        ({}, {}, "open"),
    ],
)
def test_surface(far: dict[int, float], alike: dict[int, int], state: str) -> None:
    assert surface_illusion(far, alike).state == state


def test_the_surface_verdict_tells_its_numbers() -> None:
    assert (
        "In iteration 2, of 1,234 sampled pairs of one skill, 80.0%"
        in surface_illusion({2: 0.8}, {2: 1234}).text
    )
