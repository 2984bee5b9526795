"""Console output: plain lines in a log, a live bar on a terminal, silence on other ranks."""

import io

import pytest
from rich.console import Console

from megatron_srpo.report.console import Progress, duration, evaluation_line, phase_seconds
from tests.report.synthetic import evaluation, row


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _log() -> tuple[Console, io.StringIO]:
    buffer = io.StringIO()
    return Console(file=buffer, width=80, force_terminal=False), buffer


def _terminal() -> tuple[Console, io.StringIO]:
    buffer = io.StringIO()
    return Console(file=buffer, width=140, force_terminal=True, color_system="standard"), buffer


def test_a_log_gets_one_plain_line_per_step() -> None:
    console, buffer = _log()
    clock = Clock()
    with Progress(60, console=console, clock=clock) as progress:
        for step in (1, 2):
            clock.now += 30
            progress.step(row(step))
    lines = buffer.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("step  2/60  accuracy 0.")
    for part in (
        "policy/distill/dropped",
        "length 4",
        "grad 0.",
        "left 29:00",
        "generate 3.",
        "update 2.4 s",
    ):
        assert part in lines[1]
    assert "\x1b" not in buffer.getvalue(), "no escape sequences in a log"
    assert len(lines[1]) > 80, "a log line is never folded"


def test_numbers_of_a_step() -> None:
    console, buffer = _log()
    values = {
        "step": 7,
        "reward/accuracy": 0.41249,
        "route/policy_share": 0.6,
        "route/distill_share": 0.3,
        "route/dropped_share": 0.1,
        "response/length_mean": 38.24,
        "response/truncated_share": 0.25,
        "optim/grad_norm": 0.12345,
        "time/step": 8.04,
        "time/generate": 5.0,
        "time/sync": 0.01,
    }
    Progress(10, start_step=6, console=console, clock=lambda: 0.0).step(values)
    assert buffer.getvalue() == (
        "step  7/10  accuracy 0.412  policy/distill/dropped 60/30/10 %  length 38.2  truncated 25%  "
        "grad 0.123  8.0 s  left 0:00  (generate 5.0 s)\n"
    )


def test_missing_and_null_metrics_are_left_out() -> None:
    console, buffer = _log()
    Progress(10, console=console, clock=lambda: 0.0).step(
        {"step": 1, "reward/accuracy": None, "loss/total": 1.0}
    )
    assert buffer.getvalue() == "step  1/10  left 0:00\n"


def test_evaluation_has_its_own_line() -> None:
    console, buffer = _log()
    Progress(10, console=console).step({"step": 0, **evaluation(0)})
    first, second = buffer.getvalue().splitlines()
    assert first == "step  0/10  (evaluate 4.0 s)"
    assert second.startswith("evaluation at step 0: accuracy 0.3")
    assert "(chain_sum 0.2" in second and "gcd 0.4" in second


def test_evaluation_without_sets() -> None:
    line = evaluation_line({"step": 5, "eval/accuracy": 0.5})
    assert line is not None and line.plain == "evaluation at step 5: accuracy 0.500"
    assert evaluation_line({"step": 5}) is None


def test_time_left_follows_the_last_steps() -> None:
    clock = Clock()
    progress = Progress(100, start_step=40, enabled=False, clock=clock)
    assert progress.seconds_left() is None
    for step, seconds in ((41, 10.0), (42, 30.0)):
        clock.now += seconds
        progress.step({"step": step})
    assert progress.seconds_left() == pytest.approx(20.0 * 58)
    for step in range(43, 73):  # far more than are remembered: the slow start is forgotten
        clock.now += 1.0
        progress.step({"step": step})
    assert progress.seconds_left() == pytest.approx(28.0)
    progress.step({"step": 100})
    assert progress.seconds_left() == 0.0


def test_the_evaluation_before_training_is_not_counted_as_a_step() -> None:
    clock = Clock()
    progress = Progress(10, enabled=False, clock=clock)
    clock.now += 500
    progress.step({"step": 0, "eval/accuracy": 0.1})
    assert progress.seconds_left() is None
    clock.now += 2
    progress.step({"step": 1})
    assert progress.seconds_left() == pytest.approx(18.0)


def test_warnings_are_yellow_on_a_terminal_and_named_in_a_log() -> None:
    console, buffer = _terminal()
    with Progress(10, console=console) as progress:
        progress.warn("length [red]collapse[/red]")
    assert "\x1b[33mwarning: length [red]collapse[/red]\x1b[0m" in buffer.getvalue()
    console, buffer = _log()
    Progress(10, console=console).warn("length [red]collapse[/red]")
    assert buffer.getvalue() == "warning: length [red]collapse[/red]\n"


def test_messages_are_not_markup() -> None:
    console, buffer = _log()
    Progress(10, console=console).message("gcd [bold] [/nonsense] :smile: 42")
    assert buffer.getvalue() == "gcd [bold] [/nonsense] :smile: 42\n"


def test_a_terminal_shows_bar_phase_and_seconds() -> None:
    console, buffer = _terminal()
    clock = Clock()
    with Progress(10, console=console, clock=clock) as progress:
        clock.now += 3.0
        progress.step(row(1))
        with progress.phase("generate"):
            clock.now += 1.5
            console.print(progress._render())
    text = buffer.getvalue()
    assert "1/10" in text and "elapsed 0:04" in text and "left 0:27" in text
    assert "generate 1.5 s" in text
    assert "last step: generate 3." in text
    assert "\x1b[?25l" in text and "\x1b[?25h" in text, "the cursor is hidden while live and shown again"


def test_nested_phases_show_the_inner_one_and_end_after_errors() -> None:
    console, _ = _log()
    progress = Progress(10, console=console, clock=lambda: 0.0)
    with progress.phase("evaluate"):
        with progress.phase("generate"):
            assert progress._phase_text() == "generate 0.0 s"
        assert progress._phase_text() == "evaluate 0.0 s"
        with pytest.raises(RuntimeError), progress.phase("reward"):
            raise RuntimeError
        assert progress._phase_text() == "evaluate 0.0 s"
    assert progress._phase_text() == ""


def test_the_live_display_ends_when_training_fails() -> None:
    console, buffer = _terminal()
    with pytest.raises(RuntimeError), Progress(10, console=console):
        raise RuntimeError
    assert buffer.getvalue().rstrip().endswith("\x1b[?25h")


def test_disabled_progress_prints_nothing() -> None:
    console, buffer = _terminal()
    with Progress(10, enabled=False, console=console) as progress:
        progress.step(row(1))
        progress.warn("a")
        progress.message("b")
        with progress.phase("generate"):
            pass
    assert buffer.getvalue() == ""
    assert progress.current_step == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "--"),
        (0, "0:00"),
        (59.6, "1:00"),
        (61, "1:01"),
        (3599, "59:59"),
        (3600, "1:00:00"),
        (90061, "25:01:01"),
    ],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_phases_too_short_to_see_are_left_out() -> None:
    assert (
        phase_seconds({"step": 1, "time/generate": 1.26, "time/sync": 0.04, "time/reward": None})
        == "generate 1.3 s"
    )
