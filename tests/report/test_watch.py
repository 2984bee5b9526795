"""The collapse watch: each rule speaks in its own scenario, once, and stays silent in a healthy run."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_srpo.config.report import WatchConfig
from megatron_srpo.report.watch import RULES, History, Warned, Watch, replay
from tests.report.synthetic import evaluation, row

CONFIG = WatchConfig()
START = 20  # step at which a scenario begins
Change = Callable[[int], dict[str, Any]]


def _run(change: Change, steps: int = 60) -> list[dict[str, Any]]:
    """A healthy run whose rows are changed from START on; ``change`` gets the steps since then."""
    rows: list[dict[str, Any]] = [{"step": 0, **evaluation(0)}]
    for step in range(1, steps + 1):
        values = row(step) | (evaluation(step) if step % 10 == 0 else {})
        rows.append(values | (change(step - START) if step >= START else {}))
    return rows


def _nothing(since: int) -> dict[str, Any]:
    return {}


# What happens, the rules that must speak, and what the text must name. A rule speaks at the first window mean
# beyond its threshold, e.g. four steps of 0.7 and one near 0 give 0.56, and one of 0.3 in five gives 0.06.
SCENARIOS: dict[str, tuple[Change, set[str], tuple[str, ...]]] = {
    "nan": (lambda since: {"loss/total": None} if since == 3 else {}, {"not_finite"}, ("loss/total", "NaN")),
    "short": (
        lambda since: {"response/length_mean": 15.0},
        {"length_collapse"},
        ("response/length_mean has fallen to 18.6 tokens from 40.6",),
    ),
    "certain": (
        lambda since: {"response/length_mean": 25.0, "teacher/entropy_mean": 0.08},
        {"certain_teacher"},
        ("teacher/entropy_mean", "0.080", "25.0"),
    ),
    "drift": (
        lambda since: {"teacher/entropy_mean": 0.6 + 0.02 * since, "loss/divergence": 0.06 * 0.97**since},
        {"drifting_teacher"},
        ("teacher/entropy_mean rose", "loss/divergence fell"),
    ),
    "no gradient": (
        lambda since: {"optim/grad_norm": 1e-6},
        {"vanished_gradient"},
        ("optim/grad_norm", "1e-06"),
    ),
    "accuracy": (
        lambda since: {"reward/accuracy": max(0.1, 0.6 - 0.05 * since)},
        {"accuracy_collapse"},
        ("reward/accuracy has fallen", "best"),
    ),
    "evaluation": (
        lambda since: {"eval/accuracy": 0.1} if (since + START) % 10 == 0 else {},
        {"evaluation_collapse"},
        ("eval/accuracy has fallen to 0.100",),
    ),
    "truncated": (
        lambda since: {"response/truncated_share": 0.7},
        {"truncated_responses"},
        ("response/truncated_share is 56%",),
    ),
    "engine": (
        lambda since: {"engine/logprob_diff_mean": 0.3},
        {"engine_mismatch"},
        ("engine/logprob_diff_mean is 0.06 nats, above 0.05",),
    ),
    "all wrong": (
        lambda since: {"reward/prompts_all_wrong": 1.0},
        {"all_wrong"},
        ("reward/prompts_all_wrong is 100%",),
    ),
}


def test_every_rule_has_a_scenario() -> None:
    assert set().union(*(rules for _, rules, _ in SCENARIOS.values())) == set(RULES)


@pytest.mark.parametrize("seed", range(5))
def test_a_healthy_run_is_silent(seed: int) -> None:
    rows = [{"step": 0, **evaluation(0, seed=seed)}]
    rows += [row(step, seed=seed) | evaluation(step, seed=seed) for step in range(1, 121)]
    assert replay(rows, CONFIG) == []


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_rule_speaks_once_in_its_scenario_and_no_other_does(name: str) -> None:
    change, rules, words = SCENARIOS[name]
    warned = replay(_run(change), CONFIG)
    assert [warning.rule for warning in warned] == sorted(rules), warned
    assert warned[0].step >= START
    for word in (*words, "Remedy:"):
        assert word in warned[0].text


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenarios_are_healthy_before_they_begin(name: str) -> None:
    """The warning above comes from the change, not from the rows around it."""
    assert replay(_run(SCENARIOS[name][0])[:START], CONFIG) == []


def test_the_known_collapse_is_seen_by_several_rules() -> None:
    """Spec section 12: ~20 tokens with teacher entropy near 0.08, accuracy 0.42 to 0.12 in 20 steps."""

    def collapse(since: int) -> dict[str, Any]:
        done = min(since / 20, 1.0)
        return {
            "response/length_mean": 45 - 27 * done,
            "teacher/entropy_mean": 0.6 - 0.52 * done,
            "reward/accuracy": 0.42 - 0.3 * done,
        }

    rules = {warning.rule for warning in replay(_run(collapse), CONFIG)}
    assert rules == {"length_collapse", "certain_teacher", "accuracy_collapse"}


@pytest.mark.parametrize(
    ("name", "threshold"),
    [
        ("short", {"length_fraction": 0.3}),
        ("certain", {"entropy_minimum": 0.05}),
        ("certain", {"short_fraction": 0.5}),
        ("drift", {"trend_change": 5.0}),
        ("no gradient", {"grad_norm_minimum": 1e-7}),
        ("accuracy", {"accuracy_drop": 0.95}),
        ("accuracy", {"accuracy_floor": 0.99}),
        ("evaluation", {"accuracy_drop": 0.95}),
        ("truncated", {"truncated_share": 0.8}),
        ("engine", {"logprob_difference": 0.5}),
        ("nan", {"enabled": False}),
    ],
)
def test_thresholds_decide(name: str, threshold: dict[str, Any]) -> None:
    rows = _run(SCENARIOS[name][0])
    assert replay(rows, CONFIG) != []
    assert replay(rows, dataclasses.replace(CONFIG, **threshold)) == []


def test_all_wrong_threshold_is_inclusive() -> None:
    rows = _run(lambda since: {"reward/prompts_all_wrong": 0.9})
    assert replay(rows, CONFIG) == []
    assert [w.rule for w in replay(rows, dataclasses.replace(CONFIG, all_wrong_share=0.9))] == ["all_wrong"]


def test_short_responses_alone_do_not_make_the_teacher_suspect() -> None:
    rows = _run(lambda since: {"response/length_mean": 25.0})
    assert replay(rows, CONFIG) == []


def test_entropy_rising_alone_is_no_drift() -> None:
    rows = _run(lambda since: {"teacher/entropy_mean": 0.6 + 0.02 * since, "loss/divergence": 0.08})
    assert replay(rows, CONFIG) == []


def test_one_bad_step_is_not_a_collapse() -> None:
    spike = {"response/length_mean": 5.0, "optim/grad_norm": 0.0, "reward/accuracy": 0.2}
    assert replay(_run(lambda since: spike if since == 5 else {}), CONFIG) == []


def test_a_flickering_metric_warns_once() -> None:
    rows = _run(lambda since: {"response/truncated_share": 0.55 if since // 3 % 2 else 0.49}, steps=100)
    warned = replay(rows, dataclasses.replace(CONFIG, window=1))
    assert [warning.rule for warning in warned] == ["truncated_responses"]


def test_a_rule_is_armed_again_after_recovery() -> None:
    rows = _run(
        lambda since: {"response/truncated_share": 0.9 if since < 10 or since >= 40 else 0.0}, steps=80
    )
    warned = replay(rows, CONFIG)
    # Window means of 0.9 and 0 cross 0.5 at the third changed step.
    assert [(warning.rule, warning.step) for warning in warned] == [
        ("truncated_responses", START + 2),
        ("truncated_responses", START + 42),
    ]


def test_short_recovery_does_not_arm_a_rule() -> None:
    rows = _run(
        lambda since: {"response/truncated_share": 0.9 if since < 10 or since >= 18 else 0.0}, steps=80
    )
    assert len(replay(rows, CONFIG)) == 1
    assert len(replay(rows, dataclasses.replace(CONFIG, rearm_steps=2))) == 2


_metrics = st.fixed_dictionaries(
    {
        "response/length_mean": st.sampled_from([5.0, 20.0, 50.0]),
        "response/truncated_share": st.sampled_from([0.0, 0.6, 1.0]),
        "optim/grad_norm": st.sampled_from([None, 0.0, 1.0]),
        "reward/accuracy": st.sampled_from([0.0, 0.3, 0.9]),
    },
    optional={
        "teacher/entropy_mean": st.sampled_from([0.01, 0.5, 2.0]),
        "loss/divergence": st.sampled_from([0.01, 0.5]),
        "eval/accuracy": st.sampled_from([0.1, 0.9]),
    },
)


@given(st.lists(_metrics, max_size=40), st.integers(0, 40))
@settings(max_examples=150, deadline=None)
def test_a_resumed_watch_warns_like_one_that_never_stopped(rows: list[dict[str, Any]], at: int) -> None:
    config = WatchConfig(window=2, baseline_steps=2, trend_steps=3, rearm_steps=2)
    rows = [{"step": step, **values} for step, values in enumerate(rows)]
    resumed = Watch(config, rows[:at])
    late = [warning for values in rows[at:] for warning in resumed.update(values)]
    assert late == [warning for warning in replay(rows, config) if warning.step >= at]


@given(st.lists(_metrics, max_size=40))
@settings(deadline=None)
def test_no_row_can_break_the_watch(rows: list[dict[str, Any]]) -> None:
    for warning in replay([{"step": step, **values} for step, values in enumerate(rows)], CONFIG):
        assert isinstance(warning, Warned) and warning.text and warning.rule in RULES


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_live_values_that_are_not_finite_count_like_the_null_in_the_file(bad: float) -> None:
    """The loop shows a row to the watch before the file turns NaN into null; a resume sees the null."""
    live = _run(lambda since: {"loss/total": bad, "response/length_mean": bad} if since == 3 else {})
    null = {"loss/total": None, "response/length_mean": None}
    read_back = [values | (null if values["step"] == START + 3 else {}) for values in live]
    assert [(w.step, w.rule) for w in replay(live, CONFIG)] == [(START + 3, "not_finite")]
    assert replay(live, CONFIG) == replay(read_back, CONFIG)


def test_rows_with_only_a_step_say_nothing() -> None:
    assert replay([{"step": step} for step in range(30)], CONFIG) == []


def test_history_means() -> None:
    history = History(window=2)
    for step, length in enumerate([10.0, 20.0, 30.0, 40.0]):
        history.add({"step": step, "response/length_mean": length})
    assert history.recent("response/length_mean") == 35.0
    assert history.recent("response/length_mean", back=1) == 25.0
    assert history.recent("response/length_mean", back=3) is None
    assert history.first("response/length_mean", 2) == 15.0
    assert history.first("response/length_mean", 3) is None, "the window would overlap the first steps"
    assert history.highest("response/length_mean") == 35.0
    assert history.last("response/length_mean") == 40.0
    assert history.last("eval/accuracy") is None and history.highest("eval/accuracy") is None
