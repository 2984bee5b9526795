"""The benchmark of fused linear losses: same work everywhere, arithmetic, refusals. No time is asserted."""

import argparse
import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.conftest import REPOSITORY
from tools.benchmarks import bench_fused_linear as bench
from tools.benchmarks import fused_linear_lanes as lanes
from tools.benchmarks import fused_linear_measure as measure
from tools.benchmarks import fused_linear_variants as variants
from tools.benchmarks.fused_linear_measure import Outcome, Step
from tools.benchmarks.fused_linear_variants import JSD, LOG_PROB, Inputs, Setting, Shape
from tools.benchmarks.lane import BenchmarkError

SMALL = Shape(tokens=70, hidden=12, vocabulary=300, dtype=torch.float32, device="cpu")


@pytest.fixture
def inputs() -> Inputs:
    return variants.make_inputs(SMALL)


def outcome(loss: float = 2.0, scale: float = 1.0) -> Outcome:
    rows = scale * np.arange(1.0, 7.0).reshape(2, 3)
    return Outcome(loss, rows, rows + 1.0)


class Scripted:
    """A lane with given answers; it remembers when it was called."""

    def __init__(self, name: str, calls: list[str], answers: dict[str, Any]) -> None:
        self.name, self.calls, self.answers = name, calls, answers

    def call(self, command: str) -> Any:
        self.calls.append(self.name)
        found = self.answers[command]
        if isinstance(found, Exception):
            raise found
        return found.pop(0) if isinstance(found, list) else found

    def close(self) -> None:
        self.calls.append(f"{self.name} closed")


def step(seconds: float = 1.0, extra: int | None = 100, **changes: float) -> Step:
    return Step(seconds, seconds / 2, extra, outcome(**changes))


def scripted_rows(calls: list[str], **answers: dict[str, Any]) -> dict[str, bench.Row]:
    return {name: bench.Row(name, Scripted(name, calls, given)) for name, given in answers.items()}


def test_variants_take_turns() -> None:
    calls: list[str] = []
    rows = scripted_rows(calls, plain={"step": step(2.0)}, ours={"step": step(1.0)})
    machine = Scripted("machine", calls, {"rates": {"logits": 1.0}})
    rates = bench.run_rounds(rows, machine, 3, 1e9, 1e-4, lambda text: None)
    assert calls == ["machine", "plain", "ours"] * 3
    assert len(rates) == 3 and len(rows["ours"].steps) == 3


def test_rounds_end_with_the_time() -> None:
    rows = scripted_rows([], plain={"step": step()})
    said: list[str] = []
    rates = bench.run_rounds(rows, Scripted("m", [], {"rates": {}}), 5, 0.0, 1e-4, said.append)
    assert len(rates) == 1 and "4 rounds left out" in said[-1]


def test_a_variant_that_disagrees_gets_no_numbers() -> None:
    off = {"step": [step(0.5), step(0.5, loss=2.01)]}
    rows = scripted_rows([], plain={"step": step()}, ours=off, other={"step": step(loss=2.0001)})
    bench.run_rounds(rows, Scripted("m", [], {"rates": {}}), 2, 1e9, 1e-4, lambda text: None)
    assert rows["ours"].problem == "refused: loss off by 0.005 (allowed 2e-04) against plain"
    summary = bench.summarise(rows["ours"], rows["plain"], floor=0.1)
    assert "seconds" not in summary and summary["agreement"]["loss"] == pytest.approx(0.005)
    assert rows["other"].problem is None  # 5e-5 off, twice that is allowed
    record = {"operation": JSD, "variants": {"ours": summary}}
    assert bench.refused({"operations": [record]}) == [f"jsd, ours: {rows['ours'].problem}"]


def test_checks_refuse_and_explain() -> None:
    rows = scripted_rows(
        [],
        plain={"check": outcome()},
        ours={"check": outcome(scale=math.nan)},
        liger={"check": lanes.LaneFailed("liger-kernel is not installed")},
    )
    said: list[str] = []
    bench.check_rows(rows, outcome(), 1e-4, said.append)
    assert rows["plain"].problem is None and len(said) == 3
    assert rows["ours"].problem is not None and "hidden off by nan" in rows["ours"].problem
    assert rows["liger"].problem == "liger-kernel is not installed"
    summaries = {name: bench.summarise(row, None, 1.0) for name, row in rows.items()}
    found = {"operations": [{"operation": JSD, "variants": summaries}]}
    assert len(bench.refused(found)) == 1  # what is not installed is no disagreement


def test_one_failed_pass_ends_a_variant_only() -> None:
    calls: list[str] = []
    rows = scripted_rows(calls, plain={"step": lanes.LaneFailed("out of memory")}, ours={"step": step()})
    bench.run_rounds(rows, Scripted("m", [], {"rates": {}}), 2, 1e9, 1e-4, lambda text: None)
    assert calls == ["plain", "ours", "ours"]
    assert bench.summarise(rows["plain"], None, 1.0)["problem"] == "out of memory"
    summary = bench.summarise(rows["ours"], rows["plain"], floor=0.5)
    assert summary["time_ratio"] is None and summary["share_of_floor"] == 0.5


def test_ratios_are_of_the_same_round() -> None:
    plain, ours = scripted_rows([], plain={}, ours={}).values()
    plain.steps = [step(2.0, 1000), step(8.0, 1200)]
    ours.steps = [step(1.0, 90), step(2.0, 120)]
    found = bench.summarise(ours, plain, floor=0.75)
    assert found["time_ratio"] == {"median": 0.375, "low": 0.25, "high": 0.5}
    assert found["processor_ratio"] == found["time_ratio"]
    assert found["memory_ratio"] == pytest.approx(0.1) and found["extra_bytes"] == 120
    assert found["seconds"]["median"] == 1.5 and found["share_of_floor"] == 0.5
    ours.steps[0] = step(1.0, None)
    ours.steps[1] = step(1.0, None)
    assert bench.summarise(ours, plain, 1.0)["memory_ratio"] is None


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--device", "cpu", "--published"], "is of a GPU"),
        (["--device", "cpu", "--operations", "jsd", "--variants", "ours-recomputing"], "none of jsd"),
        (["--device", "cuda"], "no CUDA device"),
    ],
)
def test_what_cannot_work_is_refused(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.platform, "has_cuda", lambda: False)
    assert bench.main(arguments) == 2
    assert reason in capsys.readouterr().err
    with pytest.raises(BenchmarkError, match=reason):
        bench.check(bench.parse(arguments))


def test_defaults_are_those_of_the_device() -> None:
    small, large = bench.parse(["--device", "cpu"]), bench.parse(["--device", "cuda", "--hidden", "64"])
    assert (small.tokens, small.hidden, small.vocabulary, small.dtype) == (2048, 1024, 151936, "float32")
    assert (large.tokens, large.hidden, large.vocabulary, large.dtype) == (8192, 64, 151936, "bfloat16")
    assert "compile" in large.variants and "compile" not in small.variants
    with pytest.raises(argparse.ArgumentTypeError):
        bench.positive("0")


def test_the_published_shape_comes_last() -> None:
    found = bench.cases(bench.parse(["--device", "cuda", "--published"]))
    assert [(shape.vocabulary, operations) for shape, operations in found] == [
        (151936, (LOG_PROB, JSD)),
        (128256, (JSD,)),
    ]


def small_run(tmp_path: Path, *more: str) -> tuple[int, dict[str, Any]]:
    """Run the tool in this process on a tiny shape; return its exit status and what it wrote."""
    output = tmp_path / "found.json"
    sizes = ["--tokens", "20", "--hidden", "8", "--vocabulary", "90", "--rounds", "1"]
    status = bench.main(["--device", "cpu", *sizes, "--output", str(output), *more])
    return status, json.loads(output.read_text(encoding="utf-8"))


@pytest.fixture
def tiny_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(measure._COPY_BYTES, "cpu", 1 << 20)


def broken(setting: Setting) -> variants.Loss:
    """The head's gradient is half of what it should be; loss and hidden states are right."""

    def loss(given: Inputs) -> Tensor:
        half_VH = 0.5 * given.weight_VH + 0.5 * given.weight_VH.detach()
        return variants.plain_jsd(dataclasses.replace(given, weight_VH=half_VH))

    return loss


@pytest.mark.usefixtures("tiny_copy")
def test_a_wrong_gradient_costs_the_row_and_the_exit_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = {JSD: {**variants.VARIANTS[JSD], "liger": broken}}
    monkeypatch.setattr(bench, "VARIANTS", changed)
    status, found = small_run(tmp_path, "--operations", "jsd", "--variants", "plain", "ours", "liger")
    rows = found["operations"][0]["variants"]
    assert status == 1
    assert rows["liger"]["problem"] == "refused: head off by 0.5 (allowed 1e-04) against float64"
    assert "seconds" not in rows["liger"] and "seconds" in rows["ours"] and "seconds" in rows["plain"]
    assert "jsd, liger: refused" in capsys.readouterr().err


def wrong_at_full_size(setting: Setting) -> variants.Loss:
    """Right on few tokens, as a defect of the second large chunk would be."""

    def loss(given: Inputs) -> Tensor:
        return variants.plain_log_prob(given) * (1.0 if given.tokens <= measure.CHECK_TOKENS else 1.01)

    return loss


@pytest.mark.usefixtures("tiny_copy")
def test_a_defect_that_shows_at_full_size_only_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = {LOG_PROB: {**variants.VARIANTS[LOG_PROB], "trl": wrong_at_full_size}}
    monkeypatch.setattr(bench, "VARIANTS", changed)
    chosen = ["--operations", "log-prob", "--variants", "plain", "trl", "--tokens", "60"]
    status, found = small_run(tmp_path, *chosen)
    problem = found["operations"][0]["variants"]["trl"]["problem"]
    assert status == 1
    assert problem.startswith("refused: loss off by 0.01") and problem.endswith("against plain")


@pytest.mark.usefixtures("tiny_copy")
def test_without_plain_there_are_times_but_no_ratios(tmp_path: Path) -> None:
    status, found = small_run(tmp_path, "--operations", "jsd", "--variants", "ours", "--chunk", "7")
    (row,) = found["operations"][0]["variants"].values()
    assert status == 0 and row["problem"] is None
    assert row["time_ratio"] is row["memory_ratio"] is row["processor_ratio"] is None
    assert row["seconds"]["median"] > 0.0 and found["settings"]["chunk"] == 7


def test_lanes_are_closed_whatever_happens(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def open_lane(make: lanes.Maker, device: str, threads: int) -> Scripted:
        return Scripted(f"lane {len(calls)}", calls, {})

    monkeypatch.setattr(bench, "open_lane", open_lane)
    arguments = bench.parse(["--device", "cpu", "--variants", "plain", "ours"])
    with pytest.raises(KeyboardInterrupt), bench.opened(JSD, inputs, arguments) as (rows, _):
        assert list(rows) == ["plain", "ours"]
        raise KeyboardInterrupt
    assert len(calls) == 3 and all(call.endswith("closed") for call in calls)


def record(device: str, vocabulary: int) -> dict[str, Any]:
    plain, ours = scripted_rows([], plain={}, ours={}).values()
    plain.steps, ours.problem = [step(2.0)], "refused: head off by 1"
    plain.exact = {"loss": 1e-7, "hidden": 2e-7, "head": 3e-7}
    return {
        "operation": JSD,
        "shape": {**vars(SMALL), "dtype": "float32", "device": device, "vocabulary": vocabulary},
        "rounds": 1,
        "gemm_flops_per_second": dict.fromkeys(measure.GEMMS, 2e12),
        "copy_bytes_per_second": 3e9,
        "floor_seconds": 0.5,
        "variants": {row.name: bench.summarise(row, plain, 0.5) for row in (plain, ours)},
    }


def test_a_refused_row_is_printed_without_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    bench.show(record("cpu", 300))
    shown = capsys.readouterr().out
    (plain,) = (line for line in shown.splitlines() if line.startswith("│ plain"))
    (ours,) = (line for line in shown.splitlines() if line.startswith("│ ours"))
    assert "2000.0 (2000.0-2000.0)" in plain and "25%" in plain and "1e-07/2e-07/3e-07" in plain
    assert ours.strip("│ ").replace("│", "").split() == ["ours", "refused:", "head", "off", "by", "1"]
    assert "Floor 500.0 ms" in shown and "Large copy: 3 GB/s" in shown
    assert "processor seconds" in shown and "Published" not in shown


def test_the_published_row_stands_under_its_shape(capsys: pytest.CaptureFixture[str]) -> None:
    bench.show(record("cuda", bench.PUBLISHED_VOCABULARY))
    shown = capsys.readouterr().out
    assert "liger 182.6 ms and 8.7 GB" in shown and "processor seconds" not in shown


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_whole_tool(device: str, tmp_path: Path) -> None:
    output = tmp_path / "found.json"
    sizes = ["--tokens", "60", "--hidden", "16", "--vocabulary", "500", "--rounds", "2", "--chunk", "25"]
    sizes += ["--dtype", "float32"]
    command = [sys.executable, "-m", "tools.benchmarks.bench_fused_linear", "--device", device, *sizes]
    chosen = ["--variants", "plain", "ours", "ours-recomputing", "--output", str(output)]
    run = subprocess.run([*command, *chosen], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert "agrees with float64" in run.stderr and "off float64" in run.stdout
    found = json.loads(output.read_text(encoding="utf-8"))
    assert found["versions"]["torch"] and found["settings"]["rounds"] == 2 and found["published"] is None
    names = {record["operation"]: set(record["variants"]) for record in found["operations"]}
    assert names == {LOG_PROB: {"plain", "ours", "ours-recomputing"}, JSD: {"plain", "ours"}}
    for record in found["operations"]:
        assert (
            record["rounds"] == 2 and record["floor_seconds"] > 0.0 and record["copy_bytes_per_second"] > 0.0
        )
        assert set(record["gemm_flops_per_second"]) == set(measure.GEMMS)
        sizes_found = (record["shape"][key] for key in ("tokens", "hidden", "vocabulary", "dtype", "device"))
        assert tuple(sizes_found) == (60, 16, 500, "float32", device)
        for item in record["variants"].values():
            assert item["problem"] is None and len(item["rounds"]) == 2
            assert set(item["exact"]) == {"loss", "hidden", "head"}
            assert item["time_ratio"]["low"] <= item["time_ratio"]["median"] <= item["time_ratio"]["high"]
        assert record["variants"]["plain"]["time_ratio"]["median"] == 1.0
        assert set(record["variants"]["ours"]["agreement"]) == {"loss", "hidden", "head"}
