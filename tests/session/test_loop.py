"""The real loop on real ranks: what must stay equal, and what must not be lost."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from megatron_srpo.config.loader import load_config
from megatron_srpo.config.run import RunConfig
from megatron_srpo.report.metrics import deterministic, read_metrics
from tests.ranks import run_ranks

ROOT = Path(__file__).parents[2]

SMALL = [
    f"model.path={ROOT}/examples/models/qwen3-tiny",
    "rollout.prompts_per_step=8",
    "rollout.samples_per_prompt=4",
    "rollout.max_response_tokens=48",
    "reward.workers=1",
    "checkpoint.every=0",
    "checkpoint.at_end=false",
    "checkpoint.export_hf=false",
    "evaluation.every=0",
    "evaluation.before=false",
    "evaluation.after=false",
    "report.samples_per_step=2",
    "optimizer.warmup_steps=0",
]


def small_config(output: Path, *overrides: str) -> RunConfig:
    given = [*SMALL, f"output_dir={output}", *overrides]
    return load_config(RunConfig, ROOT / "examples" / "quickstart.yaml", given)


def train_ranks(rank: int, world: int, config: RunConfig) -> None:
    from megatron_srpo.loop import train
    from megatron_srpo.session.build import open_run

    with open_run(config, resume=False) as run:
        train(run)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [deterministic(row) for row in read_metrics(folder / "metrics.jsonl")]


def test_learning_rate_zero_keeps_trainer_and_engine_together(tmp_path: Path) -> None:
    config = small_config(tmp_path, "training.steps=10", "optimizer.learning_rate=0", "data.shuffle=false")
    run_ranks(2, train_ranks, config, timeout=300)
    rows = rows_of(tmp_path)
    assert len(rows) == 10
    for row in rows:
        # Two implementations of one model in fp32: rounding of differently ordered sums, about 1e-6.
        assert row["engine/logprob_diff_max"] < 1e-4
        assert abs(row["policy/kl_old_new"]) < 1e-9  # the same weights and the same packing twice
    # Weights that travel through shards and back every step stay what they are, bit for bit; the
    # difference depends on the step's prompts alone.
    means = [row["engine/logprob_diff_mean"] for row in rows]
    assert max(means) < 2 * min(means)


def test_the_same_batch_again_gives_the_same_difference_at_learning_rate_zero(tmp_path: Path) -> None:
    """With one batch for ever, ten updates of weight 0 leave the difference at its first value exactly."""
    config = small_config(
        tmp_path, "training.steps=10", "optimizer.learning_rate=0", "evaluation.before=false"
    )
    differences = run_ranks(2, differences_at_rate_zero, config, timeout=300)[0]
    assert len(differences) == 10
    assert set(differences) == {differences[0]}
    assert 0 < differences[0] < 1e-4


def differences_at_rate_zero(rank: int, world: int, config: RunConfig) -> list[float]:
    from megatron_srpo.loop import train_step
    from megatron_srpo.session.build import open_run

    found = []
    with open_run(config, resume=False) as run:
        for _ in range(10):
            train_step(run)
            found.append(run.row["engine/logprob_diff_max"])
            run.step = 0  # the same prompts and seeds again, with the weights that came back
    return found


@pytest.mark.parametrize("replicas", [2])
def test_data_parallel_replicas_follow_the_same_trajectory(tmp_path: Path, replicas: int) -> None:
    """Prompts, seeds and sums do not depend on the replicas; only fp32 rounding does."""
    one, two = tmp_path / "one", tmp_path / "two"
    shared = ["training.steps=2", "parallel.tensor=1", "rollout.temperature=0.9"]
    run_ranks(1, train_ranks, small_config(one, *shared), timeout=300)
    run_ranks(replicas, train_ranks, small_config(two, *shared), timeout=300)
    for first, second in zip(rows_of(one), rows_of(two), strict=True):
        # What only several replicas have: how evenly they share the work.
        assert set(second) - set(first) == {"balance/slowest", "balance/slowest_undealt"}
        for name in first:
            if name.startswith("engine/"):
                continue  # rounding noise itself
            # Quantiles and shares of the same tokens: equal up to the rounding of log-probs (1e-6).
            assert second[name] == pytest.approx(first[name], rel=1e-4, abs=1e-6), name


def test_replicas_share_the_work_evenly_and_change_nothing_else(tmp_path: Path) -> None:
    """Two mini-batches of four prompts a step; the run is the same with and without, but for rounding."""
    shared = ["training.steps=2", "parallel.tensor=1", "training.prompts_per_mini_batch=4"]
    rows = {}
    for balance in ("true", "false"):
        folder = tmp_path / balance
        run_ranks(2, train_ranks, small_config(folder, *shared, f"training.balance={balance}"), timeout=300)
        rows[balance] = rows_of(folder)
    for even, uneven in zip(rows["true"], rows["false"], strict=True):
        assert 1.0 <= even["balance/slowest"] < min(1.02, even["balance/slowest_undealt"])
        assert uneven["balance/slowest"] == uneven["balance/slowest_undealt"]
        assert uneven["balance/slowest_undealt"] == pytest.approx(even["balance/slowest_undealt"])
        for name in set(even) - {"balance/slowest"}:
            if not name.startswith("engine/"):  # rounding noise itself
                assert even[name] == pytest.approx(uneven[name], rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("mode", ["live", "frozen", "trust_region"])
def test_every_teacher_runs(tmp_path: Path, mode: str) -> None:
    config = small_config(tmp_path, "training.steps=2", f"teacher.mode={mode}", "parallel.tensor=1")
    run_ranks(1, train_ranks, config)
    rows = rows_of(tmp_path)
    assert len(rows) == 2 and all(row["loss/divergence"] >= 0 for row in rows)
    assert all(row["teacher/weight_mean"] == pytest.approx(1.0, rel=1e-5) for row in rows)


def test_mini_batches_make_several_optimizer_steps(tmp_path: Path) -> None:
    overrides = ["training.steps=2", "training.prompts_per_mini_batch=2", "optimizer.warmup_steps=8"]
    config = small_config(tmp_path, *overrides, "optimizer.learning_rate=8e-4", "algorithm.name=grpo")
    run_ranks(2, train_ranks, config)
    rows = rows_of(tmp_path)
    # Four optimizer steps a batch: warm-up over eight ends with the second batch.
    assert [row["optim/learning_rate"] for row in rows] == pytest.approx([4e-4, 8e-4])
    assert rows[0]["policy/kl_old_new"] > 0  # later mini-batches are off-policy
    assert "teacher/entropy_mean" not in rows[0] and rows[0]["route/policy_share"] == 1


def command(config: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "megatron_srpo.cli", "train", "--config", str(config), *arguments]


def start(command_line: list[str], log: Path) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with log.open("wb") as output:
        return subprocess.Popen(
            command_line, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )


def wait_for_row(folder: Path, step: int, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        rows = read_metrics(folder / "metrics.jsonl") if (folder / "metrics.jsonl").exists() else []
        if rows and rows[-1]["step"] >= step:
            return
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    raise AssertionError(f"no step {step} in time:\n{log.read_text()}")


def finish(process: subprocess.Popen, log: Path) -> None:
    assert process.wait(timeout=300) == 0, log.read_text()


def test_a_killed_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    from megatron_srpo.config.loader import to_yaml

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    overrides = ["training.steps=6", "checkpoint.every=2", "teacher.ema_rate=0.3"]
    run_ranks(2, train_ranks, small_config(whole, *overrides), timeout=300)

    (tmp_path / "killed.yaml").write_text(to_yaml(small_config(killed, *overrides)))
    log = tmp_path / "log"
    process = start(command(tmp_path / "killed.yaml"), log)
    wait_for_row(killed, 3, process, log)
    time.sleep(0.3)  # into the middle of step 4
    assert process.poll() is None, "the run ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert read_metrics(killed / "metrics.jsonl")[-1]["step"] < 6
    assert not (killed / "checkpoints" / "step_00000006").exists()

    finish(start(command(tmp_path / "killed.yaml", "--resume"), log), log)
    assert rows_of(killed) == rows_of(whole)
    for name in ("rollouts.jsonl", "histograms.jsonl"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes()


def test_a_finished_run_can_be_extended(tmp_path: Path) -> None:
    """Raising training.steps on --resume continues; metrics of the first steps stay."""
    config = small_config(tmp_path, "training.steps=1", "checkpoint.every=1", "parallel.tensor=1")
    run_ranks(1, train_ranks, config)
    longer = small_config(tmp_path, "training.steps=2", "checkpoint.every=1", "parallel.tensor=1")
    run_ranks(1, resume_ranks, longer)
    assert [row["step"] for row in rows_of(tmp_path)] == [1, 2]
    samples = (tmp_path / "rollouts.jsonl").read_text().splitlines()
    assert {json.loads(line)["step"] for line in samples} == {1, 2}


@pytest.mark.slow
def test_balanced_replicas_resume_bit_for_bit(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    shared = ["checkpoint.every=1", "parallel.tensor=1", "rollout.prompts_per_step=4"]
    run_ranks(2, train_ranks, small_config(whole, *shared, "training.steps=2"), timeout=300)
    run_ranks(2, train_ranks, small_config(parts, *shared, "training.steps=1"), timeout=300)
    run_ranks(2, resume_ranks, small_config(parts, *shared, "training.steps=2"), timeout=300)
    assert rows_of(whole) == rows_of(parts)
    assert rows_of(whole)[1]["balance/slowest"] < rows_of(whole)[1]["balance/slowest_undealt"]


def resume_ranks(rank: int, world: int, config: RunConfig) -> None:
    from megatron_srpo.loop import train
    from megatron_srpo.session.build import open_run

    with open_run(config, resume=True) as run:
        assert run.step == 1
        train(run)
