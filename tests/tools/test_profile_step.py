"""The profile of a step: seconds are neither lost nor counted twice; no part falls out of it in silence."""

import importlib
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_srpo.config.run import RunConfig
from tests.conftest import REPOSITORY
from tools.benchmarks import profile_step, workload
from tools.benchmarks.lane import environment
from tools.benchmarks.sections import REST, Seconds, SectionTimer, install

CONFIG = str(REPOSITORY / "examples" / "quickstart.yaml")
SMALL = (
    f"model.path={REPOSITORY / 'examples' / 'models' / 'qwen3-tiny'}",
    "rollout.prompts_per_step=4",
    "rollout.samples_per_prompt=2",
    "rollout.max_response_tokens=8",
    "reward.workers=1",
    *(f"data.train.{source}.size=20" for source in range(3)),
)


def config() -> RunConfig:
    return workload.benchmark_config(CONFIG, SMALL)


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def timer(clock: Clock) -> SectionTimer:
    return SectionTimer(clock, lambda: clock.now / 2)


def spend(clock: Clock, seconds: float) -> None:
    clock.now += seconds


def test_nested_sections_take_their_time_from_the_outer_ones(timer: SectionTimer, clock: Clock) -> None:
    inner = timer.wrap(lambda: spend(clock, 3), "inner")

    def work() -> None:
        spend(clock, 1)
        inner()
        inner()
        spend(clock, 2)

    with timer.in_phase("update"):
        spend(clock, 10)
        timer.wrap(work, "outer")()
    assert timer.table == {
        ("update", REST): Seconds(10, 5, 1),
        ("update", "outer"): Seconds(3, 1.5, 1),
        ("update", "inner"): Seconds(6, 3, 2),
    }


@given(st.lists(st.tuples(st.sampled_from("([)]"), st.integers(0, 5)), max_size=30))
def test_the_sections_add_up_to_the_phase(events: list[tuple[str, int]]) -> None:
    """Whatever opens and closes in between: no second is lost or counted twice."""
    clock = Clock()
    timer = SectionTimer(clock, clock)
    open_sections: list[Any] = []
    with timer.in_phase("p"):
        for kind, seconds in events:
            spend(clock, seconds)
            if kind in "([":
                open_sections.append(timer.section(kind))
                open_sections[-1].__enter__()
            elif open_sections:
                open_sections.pop().__exit__(None, None, None)
        for section in reversed(open_sections):
            section.__exit__(None, None, None)
    assert sum(seconds.wall for seconds in timer.table.values()) == clock.now


def test_nothing_is_counted_outside_of_a_phase(timer: SectionTimer, clock: Clock) -> None:
    def work() -> str:
        spend(clock, 5)
        return "result"

    assert timer.wrap(work, "x")() == "result"
    with timer.in_phase("p"):
        pass
    assert timer.table == {("p", REST): Seconds(0, 0, 1)}


def test_an_exception_closes_its_section(timer: SectionTimer, clock: Clock) -> None:
    def fail() -> None:
        spend(clock, 2)
        raise ValueError("x")

    with timer.in_phase("p"):
        with pytest.raises(ValueError):
            timer.wrap(fail, "failing")()
        spend(clock, 1)
    assert timer.table["p", "failing"].wall == 2 and timer.table["p", REST].wall == 1


def test_functions_are_wrapped_where_they_live(
    timer: SectionTimer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Owner:
        def method(self, seconds: float) -> float:
            spend(clock, seconds)
            return seconds

        @staticmethod
        def static(seconds: float) -> None:
            spend(clock, seconds)

    module = types.ModuleType("profiled_module")
    module.__dict__.update(Owner=Owner, function=lambda: spend(clock, 7))
    monkeypatch.setitem(sys.modules, "profiled_module", module)
    targets = (("Owner.method", "m"), ("Owner.static", "s"), ("function", "f"))
    install(timer, [(f"profiled_module:{path}", section) for path, section in targets])
    with timer.in_phase("p"):
        assert Owner().method(1.5) == 1.5
        Owner.static(2.5)
        module.__dict__["function"]()
    assert [timer.table["p", name].wall for name in "msf"] == [1.5, 2.5, 7.0]


def test_a_target_that_is_gone_is_an_error(timer: SectionTimer) -> None:
    with pytest.raises(KeyError, match="no_such_function"):
        install(timer, [("json:no_such_function", "x")])


def test_every_target_of_the_profile_exists() -> None:
    """A renamed function must not fall out of the profile in silence."""
    for path, _ in profile_step.TARGETS:
        module, _, dotted = path.partition(":")
        owner: Any = importlib.import_module(module)
        for part in dotted.split("."):
            assert part in owner.__dict__, path
            owner = owner.__dict__[part]
        assert callable(owner), path


def test_the_table_shows_medians_and_sums() -> None:
    tables = [
        {("update", "forward"): Seconds(wall, wall / 2, 4), ("update", "backward"): Seconds(1.0, 1.0, 1)}
        for wall in (2.0, 9.0, 3.0)
    ]
    _, _, phase, first, second, total = profile_step.table_lines(tables)
    assert first == "|  | forward | 3.000 | 75.0% | 1.500 | 4 |"
    assert second == "|  | backward | 1.000 | 25.0% | 1.000 | 1 |"
    assert phase == "| **update** |  | 4.000 | 100.0% | 2.500 |  |"
    assert total == "| **step** |  | 4.000 | 100.0% | 2.500 |  |"


def test_a_section_absent_from_a_step_counts_as_zero() -> None:
    y = {("p", "y"): Seconds(1.0, 1.0, 1)}
    tables = [{("p", "x"): Seconds(3.0, 3.0, 1), **y}, y]
    rows = profile_step.table_lines(tables)
    assert any(row.startswith("|  | x | 1.500 |") for row in rows)


def test_the_profile_neither_evaluates_nor_saves(tmp_path: Path) -> None:
    chosen = profile_step.quiet(config(), str(tmp_path))
    assert chosen.output_dir == str(tmp_path)
    assert not any(chosen.evaluation.is_due(step, 5) for step in range(6))
    assert chosen.checkpoint.every == 0 and not chosen.checkpoint.at_end and not chosen.checkpoint.export_hf


def test_a_wrong_override_ends_the_profile_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert profile_step.main(["--config", CONFIG, "training.stepz=3"]) == 2
    assert "stepz" in capsys.readouterr().err


@pytest.mark.slow
def test_a_step_is_profiled(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """One step of the real loop in a process of its own (wrapping functions would outlive the test)."""

    output = tmp_path / "profile.md"
    command = ["-m", "tools.benchmarks.profile_step", "--config", CONFIG, *SMALL, "parallel.tensor=1"]
    subprocess.run(
        [sys.executable, *command, "--steps", "1", "--warm-up", "0", "--output", str(output)],
        check=True,
        cwd=REPOSITORY,
        env=environment(1),
        timeout=600,
    )
    text = output.read_text()
    for name in ("generate", "reward", "score", "teacher", "update", "sync", "step"):
        assert f"**{name}**" in text
    for section in ("forward", "backward", "head: logits", "optimizer", "decode: model", "packing"):
        assert f"| {section} |" in text
