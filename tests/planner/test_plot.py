"""The figure of a scaling curve."""

from pathlib import Path

import pytest

from megatron_srpo.errors import ConfigError
from megatron_srpo.planner.plot import write_plot
from megatron_srpo.planner.scaling import Curve, curves
from tests.planner.test_scaling import PROBLEM


@pytest.fixture(scope="module")
def drawn() -> list[Curve]:
    return curves(PROBLEM, 16, 256, (0, 4), grow=True)


def test_every_curve_is_drawn_and_named(drawn: list[Curve], tmp_path: Path) -> None:
    text = write_plot(drawn, tmp_path / "new" / "curve.svg", "qwen3-8b on h100").read_text()
    for word in ("on-policy", "4-off", "tokens/s", "GPUs", "qwen3-8b on h100", "256"):
        assert f">{word}<" in text, word
    assert write_plot(drawn, tmp_path / "again.svg", "qwen3-8b on h100").read_text() == text


def test_other_formats(drawn: list[Curve], tmp_path: Path) -> None:
    assert write_plot(drawn, tmp_path / "curve.png", "x").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match=r"ends in \.svg, \.png, \.pdf"):
        write_plot(drawn, tmp_path / "curve.docx", "x")
