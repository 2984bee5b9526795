"""metrics.jsonl: bits survive, what is not finite is null, clocks can be taken out."""

import math
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from megatron_srpo.errors import DataError
from megatron_srpo.report.metrics import MetricsFile, deterministic, read_metrics
from tests.report.synthetic import row

_floats = st.floats(allow_nan=False, allow_infinity=False)


@given(values=st.dictionaries(st.text(min_size=1).filter(lambda name: name != "step"), _floats, max_size=8))
@example(values={"smallest": 5e-324, "minus zero": -0.0, "third": 1 / 3, "large": 1.7976931348623157e308})
@settings(max_examples=80, deadline=None)
def test_floats_come_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, float]
) -> None:
    path = tmp_path_factory.mktemp("bits") / "metrics.jsonl"
    MetricsFile(path).append({"step": 3, **values})
    (back,) = read_metrics(path)
    assert back.pop("step") == 3
    assert set(back) == set(values)
    for name, value in values.items():
        assert struct.pack("<d", back[name]) == struct.pack("<d", value)


def test_rows_of_a_run_come_back_in_order(tmp_path: Path) -> None:
    rows = [row(step) for step in range(1, 6)]
    file = MetricsFile(tmp_path / "run" / "metrics.jsonl")
    for values in rows:
        file.append(values)
    assert read_metrics(tmp_path / "run" / "metrics.jsonl") == rows
    assert file.last_step == 5
    assert file.rewind(2) == 3
    assert read_metrics(tmp_path / "run" / "metrics.jsonl") == rows[:2]


def test_numpy_scalars_are_numbers_too(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    values: dict[str, Any] = {"a": np.float32(0.1), "b": np.int32(7), "c": np.float64(0.1)}
    MetricsFile(path).append({**values, "step": 1})
    assert read_metrics(path) == [{"step": 1, "a": float(np.float32(0.1)), "b": 7, "c": 0.1}]


def test_not_finite_values_become_null_with_a_warning_that_names_them(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with pytest.warns(RuntimeWarning, match="written as null: loss/total, optim/grad_norm"):
        MetricsFile(path).append(
            {
                "step": 1,
                "optim/grad_norm": math.inf,
                "loss/total": math.nan,
                "reward/mean": 0.5,
                "already": None,
            }
        )
    assert read_metrics(path) == [
        {"step": 1, "optim/grad_norm": None, "loss/total": None, "reward/mean": 0.5, "already": None}
    ]


def test_finite_rows_do_not_warn(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MetricsFile(tmp_path / "metrics.jsonl").append({"step": 1, "loss/total": 0.5, "absent": None})


@pytest.mark.parametrize("bad", [{}, {"step": 1.0}, {"step": None}])
def test_a_row_needs_an_integer_step(tmp_path: Path, bad: dict[str, float]) -> None:
    with pytest.raises(TypeError, match="integer 'step'"):
        MetricsFile(tmp_path / "metrics.jsonl").append(bad)


def test_a_value_that_is_no_number_is_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"loss/total = '0.5' is a str"):
        MetricsFile(tmp_path / "metrics.jsonl").append({"step": 1, "loss/total": "0.5"})  # type: ignore[dict-item]


def test_starting_a_second_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    MetricsFile(tmp_path / "metrics.jsonl").append({"step": 0})
    with pytest.raises(DataError, match=r"metrics\.jsonl already holds step 0.*another run folder"):
        MetricsFile(tmp_path / "metrics.jsonl").append({"step": 0})


def test_deterministic_drops_clocks_and_nothing_else() -> None:
    values = {"step": 1, "time/step": 2.0, "tokens/per_second": 5.0, "memory/peak": 1.0, "timestamp": 9.0}
    kept = {"step": 1, "tokens/total": 5.0, "reward/time_limit": 0.0, "timely": 1.0, "loss/total": None}
    assert deterministic({**values, **kept}) == kept


def test_deterministic_rows_of_two_equal_runs_are_equal() -> None:
    first, second = row(4), row(4)
    second["time/generate"] += 1.0
    second["tokens/per_second"] *= 0.9
    assert first != second
    assert deterministic(first) == deterministic(second)
