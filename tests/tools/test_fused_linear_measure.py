"""What the benchmark of fused linear losses runs and measures: the same work, memory, the floor, lanes."""

import importlib.util
import math
import os
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.ops import reference as dense
from tools.benchmarks import bench_fused_linear as bench
from tools.benchmarks import fused_linear_lanes as lanes
from tools.benchmarks import fused_linear_measure as measure
from tools.benchmarks import fused_linear_variants as variants
from tools.benchmarks.fused_linear_measure import Outcome
from tools.benchmarks.fused_linear_variants import JSD, LOG_PROB, Inputs, Setting, Shape

SMALL = Shape(tokens=70, hidden=12, vocabulary=300, dtype=torch.float32, device="cpu")
#: All but those that need minutes to compile what others do at once; ours in small chunks too.
QUICK = [
    (operation, name, chunk)
    for operation, found in variants.VARIANTS.items()
    for name in found
    if name not in variants.COMPILING
    for chunk in ((None, 16) if name.startswith("ours") else (None,))
]
#: Import names of what a variant's prefix needs.
NEEDS = {"liger": "liger_kernel", "trl": "trl"}


@pytest.fixture
def inputs() -> Inputs:
    return variants.make_inputs(SMALL)


def exact(operation: str, inputs: Inputs) -> tuple[float, Tensor, Tensor]:
    """Loss and gradients in float64 by the definitions of tests/ops."""
    hidden = inputs.hidden_TH.detach().double().requires_grad_()
    weight = inputs.weight_VH.detach().double().requires_grad_()
    student = hidden @ weight.T
    if operation == LOG_PROB:
        loss = (dense.log_prob(student, inputs.target_T) * inputs.weights_T.double()).sum()
    else:
        teacher = inputs.teacher_hidden_TH.double() @ inputs.teacher_weight_VH.double().T
        loss = dense.divergence(student, teacher, 0.5).mean()
    loss.backward()
    assert hidden.grad is not None and weight.grad is not None
    return float(loss.detach()), hidden.grad, weight.grad


# --- inputs ----------------------------------------------------------------------------------------------


def test_inputs_repeat_and_are_not_degenerate(inputs: Inputs) -> None:
    again = variants.make_inputs(SMALL)
    assert all(torch.equal(item, vars(again)[name]) for name, item in vars(inputs).items())
    logits = (inputs.hidden_TH @ inputs.weight_VH.T).detach()
    assert float(logits.std()) == pytest.approx(2.0, rel=0.2)  # 21,000 draws of few distinct rows
    assert float(inputs.weights_T.min()) > 0.0
    assert float(inputs.weights_T.sum()) == pytest.approx(1.0, rel=0.2)


def test_a_slice_shares_numbers_but_not_gradients(inputs: Inputs) -> None:
    few = inputs.slice(5)
    variants.plain_log_prob(few).backward()
    assert few.weight_VH.data_ptr() == inputs.weight_VH.data_ptr()
    assert few.tokens == 5 and few.hidden_TH.grad is not None and few.weight_VH.grad is not None
    assert inputs.hidden_TH.grad is None and inputs.weight_VH.grad is None
    few.forget_gradients()
    assert few.hidden_TH.grad is None and few.weight_VH.grad is None


# --- variants --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("operation", "name", "chunk"), QUICK)
def test_every_variant_computes_the_same(
    operation: str, name: str, chunk: int | None, inputs: Inputs
) -> None:
    needed = NEEDS.get(name.split("-")[0])
    if needed is not None and importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    loss = variants.VARIANTS[operation][name](Setting("cpu", chunk))(inputs)
    loss.backward()
    value, hidden, weight = exact(operation, inputs)
    # fp32 sums of 300 terms: a few times 1e-7, relative to the largest entry.
    assert float(loss.detach()) == pytest.approx(value, rel=1e-5)
    assert_close(inputs.hidden_TH.grad, hidden)
    assert_close(inputs.head_gradient(), weight)


def assert_close(found: Tensor | None, expected: Tensor) -> None:
    assert found is not None
    assert float((found.double() - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize("operation", list(variants.VARIANTS))
def test_plain_in_float64_is_the_definition(operation: str, inputs: Inputs) -> None:
    doubled = inputs.double()
    loss = variants.PLAIN[operation](doubled)
    loss.backward()
    value, hidden, weight = exact(operation, inputs)
    # float64: the same numbers to rounding.
    assert float(loss.detach()) == pytest.approx(value, rel=1e-12)
    torch.testing.assert_close(doubled.hidden_TH.grad, hidden, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(doubled.weight_VH.grad, weight, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("operation", list(variants.VARIANTS))
@pytest.mark.parametrize(("package", "name"), [("liger_kernel", "liger"), ("trl", "trl")])
def test_a_missing_package_is_named(
    operation: str, package: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [key for key in sys.modules if key.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(variants.Unavailable, match="is not installed"):
        variants.VARIANTS[operation][name](Setting("cpu"))


# --- agreement -------------------------------------------------------------------------------------------


def outcome(loss: float = 2.0, scale: float = 1.0) -> Outcome:
    rows = scale * np.arange(1.0, 7.0).reshape(2, 3)
    return Outcome(loss, rows, rows + 1.0)


def test_differences_are_relative() -> None:
    assert measure.differences(outcome(), outcome()) == {"loss": 0.0, "hidden": 0.0, "head": 0.0}
    found = measure.differences(outcome(loss=2.2, scale=1.5), outcome())
    assert found["loss"] == pytest.approx(0.1)
    assert found["hidden"] == pytest.approx(0.5)


@given(st.floats(1e-9, 1.0), st.sampled_from(["loss", "hidden", "head"]), st.booleans())
def test_what_exceeds_the_tolerance_is_named(tolerance: float, name: str, undefined: bool) -> None:
    found = {"loss": tolerance, "hidden": 0.0, "head": tolerance / 2}
    assert measure.disagreement(found, tolerance) is None
    found[name] = math.nan if undefined else tolerance * 1.001
    text = measure.disagreement(found, tolerance)
    assert text is not None and text.startswith(f"{name} off by")


def test_rows_of_both_gradients_are_compared(inputs: Inputs) -> None:
    loss = variants.plain_log_prob(inputs)
    loss.backward()
    found = measure.outcome_of(loss, inputs)
    hidden, weight = inputs.hidden_TH.grad, inputs.weight_VH.grad
    assert hidden is not None and weight is not None
    assert found.hidden.shape == (70, 12)  # 70 tokens are fewer than twice 64: every one is taken
    rows = {tuple(row) for row in found.head.tolist()}
    assert {tuple(row) for row in weight[inputs.target_T[:64]].double().tolist()} <= rows
    assert {tuple(row) for row in weight[::4].double().tolist()} <= rows


@pytest.mark.parametrize("operation", list(variants.VARIANTS))
def test_the_check_walks_several_chunks_and_agrees(operation: str, inputs: Inputs) -> None:
    assert measure.CHECK_TOKENS > 2 * measure.CHECK_CHUNK and measure.CHECK_TOKENS % measure.CHECK_CHUNK
    stand = measure.Stand(variants.VARIANTS[operation]["ours"], Setting("cpu"), inputs)
    found = measure.differences(stand.check(), measure.reference(operation, inputs))
    assert measure.disagreement(found, 1e-5) is None  # as above


def test_bfloat16_is_within_its_tolerance_and_a_wrong_formula_is_not() -> None:
    inputs = variants.make_inputs(Shape(60, 64, 400, torch.bfloat16, "cpu"))
    expected = measure.reference(JSD, inputs)
    tolerance = measure.TOLERANCE[torch.bfloat16]

    def off(loss: variants.Loss) -> str | None:
        stand = measure.Stand(lambda setting: loss, Setting("cpu"), inputs)
        return measure.disagreement(measure.differences(stand.check(), expected), tolerance)

    assert off(variants.plain_jsd) is None
    assert off(lambda given: 1.1 * variants.plain_jsd(given)) is not None


# --- what is measured ------------------------------------------------------------------------------------


@pytest.fixture
def resets_its_peak() -> None:
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("needs a writable /proc/self/clear_refs")


def counting(calls: list[int]) -> variants.Builder:
    def build(setting: Setting) -> variants.Loss:
        def loss(given: Inputs) -> Tensor:
            calls.append(given.tokens)
            return variants.plain_log_prob(given)

        return loss

    return build


@pytest.mark.parametrize(("warmed", "passes"), [(False, 2), (True, 3)])
def test_what_is_warmed_makes_one_pass_before_the_clock_starts(
    warmed: bool, passes: int, inputs: Inputs
) -> None:
    calls: list[int] = []
    stand = measure.Stand(counting(calls), Setting("cpu"), inputs, warmed=warmed)
    first, second = stand.step(), stand.step()
    assert calls == [70] * passes
    assert measure.differences(first.outcome, second.outcome)["head"] == 0.0


def test_a_step_forgets_what_a_failed_variant_left(inputs: Inputs) -> None:
    stand = measure.Stand(counting([]), Setting("cpu"), inputs)
    clean = stand.step().outcome
    inputs.weight_VH.grad = torch.full_like(inputs.weight_VH, 5.0)
    assert measure.differences(stand.step().outcome, clean) == {"loss": 0.0, "hidden": 0.0, "head": 0.0}


@pytest.mark.usefixtures("resets_its_peak")
def test_returned_gradients_are_not_extra_memory() -> None:
    inputs = variants.make_inputs(Shape(4, 64, 400_000, torch.float32, "cpu"))  # a head of 98 MiB

    def loss(given: Inputs) -> Tensor:
        return given.weight_VH.sum() + given.hidden_TH.sum()

    step = measure.Stand(lambda setting: loss, Setting("cpu"), inputs).step()
    assert step.extra_bytes is not None
    assert (
        step.extra_bytes < 16 * bench.MIB
    )  # code that runs for the first time; the gradient is six times that
    assert inputs.weight_VH.grad is None
    assert step.seconds > 0.0 and step.processor >= 0.0


@given(st.integers(1, 10**4), st.integers(1, 10**4), st.integers(1, 10**6))
def test_the_floor_is_the_time_of_its_products(tokens: int, hidden: int, vocabulary: int) -> None:
    rates = dict(zip(measure.GEMMS, (1e9, 2e9, 4e9), strict=True))
    work = 2 * tokens * hidden * vocabulary
    log_prob = measure.floor_seconds(LOG_PROB, tokens, hidden, vocabulary, rates)
    assert log_prob == pytest.approx(work * (1.0 + 0.5 + 0.25) / 1e9)
    jsd = measure.floor_seconds(JSD, tokens, hidden, vocabulary, rates)
    assert jsd - log_prob == pytest.approx(work / 1e9)  # the teacher's logits


def test_the_rates_are_those_of_the_products(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = measure.Machine(inputs, "cpu")
    made: list[Tensor] = []

    def seconds(call: Callable[[], Tensor]) -> float:
        made.append(call().clone())
        return 0.5

    monkeypatch.setattr(machine, "_seconds", seconds)
    monkeypatch.setitem(measure._COPY_BYTES, "cpu", 1000)
    assert machine.rates() == dict.fromkeys(measure.GEMMS, 2.0 * 70 * 12 * 300 / 0.5)
    logits = inputs.hidden_TH.detach() @ inputs.weight_VH.detach().T
    torch.testing.assert_close(made[0], logits)
    torch.testing.assert_close(made[1], logits @ inputs.weight_VH.detach())
    torch.testing.assert_close(made[2], logits.T @ inputs.hidden_TH.detach())
    assert machine.copy_rate() == 2 * 1000 / 0.5


# --- lanes -----------------------------------------------------------------------------------------------


def _commands() -> lanes.Commands:
    kept: list[int] = []

    def count() -> int:
        kept.append(os.getpid())
        return len(kept)

    def unavailable() -> None:
        raise variants.Unavailable("needs a better machine")

    def fail() -> None:
        raise ValueError("two\n  lines")

    def large() -> int:
        return torch.empty(1 << 50, dtype=torch.uint8).numel()

    return {
        "count": count,
        "pid": os.getpid,
        "unavailable": unavailable,
        "fail": fail,
        "large": large,
        "end": lambda: os._exit(3),
        "threads": torch.get_num_threads,
    }


@pytest.fixture(params=["cpu", "cuda"])
def lane(request: pytest.FixtureRequest) -> Iterator[lanes.Lane]:
    opened = lanes.open_lane(_commands, request.param, threads=1)
    yield opened
    opened.close()


def test_a_lane_keeps_its_variant_and_tells_why_it_fails(lane: lanes.Lane) -> None:
    assert [lane.call("count") for _ in range(3)] == [1, 2, 3]
    with pytest.raises(lanes.LaneFailed, match=r"^needs a better machine$"):
        lane.call("unavailable")
    with pytest.raises(lanes.LaneFailed, match=r"^ValueError: two lines$"):
        lane.call("fail")
    with pytest.raises(lanes.LaneFailed, match="allocate"):
        lane.call("large")
    assert lane.call("count") == 4  # and goes on


def test_a_forked_lane_is_a_process_of_its_own_and_its_end_is_noticed() -> None:
    lane = lanes.ForkedLane(_commands, threads=1)
    pid = lane.call("pid")
    assert pid != os.getpid() and lane.call("threads") == 1
    with pytest.raises(lanes.LaneFailed, match="status 3"):
        lane.call("end")
    lane.close()
    assert not Path(f"/proc/{pid}").exists()


def test_a_forked_lane_may_take_most_of_the_free_memory_but_not_more() -> None:
    def limit() -> int:
        return resource.getrlimit(resource.RLIMIT_DATA)[0]

    before = limit()
    lane = lanes.ForkedLane(lambda: {"limit": limit}, threads=1)
    found, free = lane.call("limit"), 1024 * lanes._kilobytes("/proc/meminfo")["MemTotal"]
    lane.close()
    assert 0 < found < free + 1024 * lanes._kilobytes("/proc/self/status")["VmData"]
    assert limit() == before  # this process is not limited


def test_a_silent_lane_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setattr(lanes, "_TIMEOUT_S", 0.2)
    lane = lanes.ForkedLane(lambda: {"sleep": lambda: time.sleep(60)}, threads=1)
    with pytest.raises(lanes.LaneFailed, match="said nothing"):
        lane.call("sleep")
    lane.close()
