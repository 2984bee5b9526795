"""Small summaries of many values, in the metric names of the reports.

An empty input gives no metric at all: a step that routed nothing to the teacher has no teacher entropy, and a
made-up zero would look like a collapse.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Values = Sequence[float] | NDArray[np.floating] | Iterable[float]


def quantiles(values: Values, percents: Sequence[int] = (10, 50, 90)) -> dict[str, float]:
    """Return ``{"p10": …, "p50": …, "p90": …}`` by linear interpolation, or ``{}`` without values."""
    array = as_array(values)
    if array.size == 0:
        return {}
    return {f"p{percent}": float(np.percentile(array, percent)) for percent in percents}


def mean(values: Values) -> float | None:
    """Return the float64 mean, or None without values."""
    array = as_array(values)
    return float(array.mean()) if array.size else None


def describe(name: str, values: Values, *, maximum: bool = False) -> dict[str, float]:
    """Return ``<name>_mean``, ``_p10``, ``_p50``, ``_p90`` and optionally ``_max``; ``{}`` without values."""
    array = as_array(values)
    if array.size == 0:
        return {}
    summary = {f"{name}_mean": float(array.mean())}
    summary |= {f"{name}_{key}": value for key, value in quantiles(array).items()}
    if maximum:
        summary[f"{name}_max"] = float(array.max())
    return summary


def share(flags: Iterable[bool]) -> float | None:
    """Return the share of true flags in [0, 1], or None without flags."""
    return mean([float(flag) for flag in flags])


def as_array(values: Values) -> NDArray[np.float64]:
    """Turn any numbers into a flat float64 array."""
    if not isinstance(values, np.ndarray):
        values = np.array(list(values), dtype=np.float64)
    return values.astype(np.float64, copy=False).reshape(-1)
