"""Summaries against definitions written out by hand and Python's own statistics module."""

import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_srpo.report.summary import as_array, describe, mean, quantiles, share

_numbers = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50)


def _by_hand(values: list[float], percent: float) -> float:
    """Linear interpolation between the two neighbouring order statistics."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


@given(_numbers)
def test_quantiles_interpolate_linearly(values: list[float]) -> None:
    result = quantiles(values)
    assert list(result) == ["p10", "p50", "p90"]
    for name, value in result.items():
        # The same formula in float64 with another order of operations: a few roundings at |x| <= 1e6.
        assert value == pytest.approx(_by_hand(values, int(name[1:])), rel=1e-12, abs=1e-8)


@given(_numbers)
def test_mean_is_the_arithmetic_mean(values: list[float]) -> None:
    # statistics.fmean sums exactly; NumPy's pairwise sum may lose a few units in the last place of 1e6.
    assert mean(values) == pytest.approx(statistics.fmean(values), rel=1e-12, abs=1e-8)


def test_describe_names_metrics_like_the_reports() -> None:
    described = describe("response/length", [1, 2, 3, 4, 5], maximum=True)
    assert described == {
        "response/length_mean": 3.0,
        "response/length_p10": 1.4,
        "response/length_p50": 3.0,
        "response/length_p90": 4.6,
        "response/length_max": 5.0,
    }
    assert "x_max" not in describe("x", [1.0])


def test_no_values_give_no_metrics() -> None:
    assert quantiles([]) == {}
    assert describe("teacher/entropy", [], maximum=True) == {}
    assert mean([]) is None
    assert share([]) is None


def test_results_are_plain_floats_from_any_numbers() -> None:
    for values in (np.array([[1, 2], [3, 4]], dtype=np.float32), (1, 2, 3, 4), iter([1.0, 2.0, 3.0, 4.0])):
        assert mean(values) == 2.5
    assert type(mean(np.array([1.5], dtype=np.float32))) is float
    assert all(
        type(value) is float
        for value in describe("x", np.array([1.5], dtype=np.float32), maximum=True).values()
    )


def test_share_of_flags() -> None:
    assert share([True, False, False, True]) == 0.5
    assert share(flag for flag in (True, True)) == 1.0


def test_as_array_is_flat_float64() -> None:
    array = as_array(np.ones((2, 3), dtype=np.float16))
    assert array.dtype == np.float64 and array.shape == (6,)
