"""A known failure as a regression test: distillation from a teacher that has nothing to say ruins the policy.

Forward KL at a high learning rate towards a teacher whose prompt the model was never taught to read brings
accuracy down within a few steps (docs/algorithms.md, section 10). The metrics must show it, and the run must
warn.
"""

from pathlib import Path
from statistics import mean

from megatron_srpo.report.html import write_report
from megatron_srpo.report.metrics import read_metrics
from tests.ranks import run_ranks
from tests.session.test_loop import small_config, train_ranks

RUINOUS = [
    "algorithm.name=sdpo",
    "algorithm.distillation.alpha=0",
    "algorithm.distillation.vocabulary=full",
    "optimizer.learning_rate=2e-3",
    "data.teacher.template='{demonstration}{question}'",
    "data.teacher.demonstration_template='hint {demonstration} '",
]
SHARED = ["training.steps=12", "parallel.tensor=1", "rollout.samples_per_prompt=8"]


def test_a_ruinous_teacher_is_seen_and_warned_about(tmp_path: Path) -> None:
    run_ranks(1, train_ranks, small_config(tmp_path, *SHARED, *RUINOUS))
    rows = read_metrics(tmp_path / "metrics.jsonl")
    accuracy = [float(row["reward/accuracy"] or 0) for row in rows]
    assert mean(accuracy[-4:]) < mean(accuracy[:2]) / 2
    assert sum(float(row["warnings/count"] or 0) for row in rows) >= 1
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "collapse" in page


def test_the_same_run_with_a_sound_teacher_stays_up(tmp_path: Path) -> None:
    sound = [change for change in RUINOUS if change.startswith("algorithm.name")]
    config = small_config(tmp_path, *SHARED, *sound, "optimizer.learning_rate=2e-4")
    run_ranks(1, train_ranks, config)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    accuracy = [float(row["reward/accuracy"] or 0) for row in rows]
    assert mean(accuracy[-4:]) > mean(accuracy[:4]) / 2
    assert sum(float(row["warnings/count"] or 0) for row in rows) == 0
