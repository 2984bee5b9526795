"""What is settled before the first iteration."""

import logging

import pytest

from megatron_srpo.errors import ConfigError
from megatron_srpo.selfplay.iterations import load_truth


def fragile(question: str) -> str:
    return str(int(question))


def test_the_truth_of_the_small_world() -> None:
    truth = load_truth("megatron_srpo.selfplay.arithmetic:true_answer")
    assert truth is not None
    assert (truth("What is 2 + 3?"), truth("Who are you?")) == ("5", None)
    assert load_truth(None) is None


def test_a_function_that_fails_knows_nothing(caplog: pytest.LogCaptureFixture) -> None:
    truth = load_truth(f"{__name__}:fragile")
    assert truth is not None
    with caplog.at_level(logging.WARNING):
        assert (truth("7"), truth("seven")) == ("7", None)
    assert "ValueError" in caplog.text and "seven" in caplog.text


@pytest.mark.parametrize("name", ["", "math", "math:nothing", "no_such_module:f", "math:pi"])
def test_what_is_no_function_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match="truth = "):
        load_truth(name)
