"""A whole step: phases, what stands beside what, and every reason to refuse."""

from dataclasses import replace

import pytest

from megatron_srpo.planner.assumptions import Assumptions
from megatron_srpo.planner.hardware import GPUS
from megatron_srpo.planner.layout import Layout, Obstacle
from megatron_srpo.planner.memory import usable_bytes
from megatron_srpo.planner.shape import QWEN3
from megatron_srpo.planner.step import Engine, Phases, Plan, Problem, plan_step
from megatron_srpo.planner.workload import Workload

PROBLEM = Problem(QWEN3["qwen3-8b"], Workload(), GPUS["h100"], Assumptions())
LAYOUT = Layout(2, 2, 1, 2, 1, 2, sequence=True)  # 16 GPUs
ENGINE = Engine(4, 16)


def plan(problem: Problem = PROBLEM, layout: Layout = LAYOUT, engine: Engine = ENGINE) -> Plan:
    found = plan_step(problem, layout, engine)
    assert isinstance(found, Plan), found
    return found


def refusal(layout: Layout = LAYOUT, engine: Engine = ENGINE, problem: Problem = PROBLEM) -> Obstacle:
    found = plan_step(problem, layout, engine)
    assert isinstance(found, Obstacle), found
    return found


def test_on_policy_everything_happens_in_turn() -> None:
    found = plan()
    assert found.seconds == pytest.approx(sum(vars(found.phases).values()))
    assert found.tokens_per_second_per_gpu == pytest.approx(PROBLEM.workload.tokens / found.seconds / 16)
    assert min(vars(found.phases).values()) > 0


def test_stale_rollouts_run_beside_training() -> None:
    phases = Phases(rollout=50, score=5, teacher=5, update=20, optimizer=1, sync=2, other=3)
    assert (phases.training, phases.step(0), phases.step(1)) == (31, 86, 52)
    stale = replace(PROBLEM, workload=replace(PROBLEM.workload, staleness=1))
    found = plan(stale, engine=Engine(1, 16, colocated=False))
    assert found.gpus == 32
    longer = max(found.phases.rollout, found.phases.training + found.phases.other)
    assert found.seconds == pytest.approx(longer + found.phases.sync)


def test_colocated_servers_live_with_what_the_trainer_keeps() -> None:
    shared, own = plan(), plan(engine=Engine(4, 16, colocated=False))
    available = usable_bytes(PROBLEM.gpu, PROBLEM.assumptions)
    assert shared.engine_cache == pytest.approx(available - shared.memory.resident - shared.engine_weights)
    assert own.engine_cache == pytest.approx(0.9 * 80e9 - own.engine_weights)
    assert shared.engine_weights == pytest.approx(2 * 8_190_735_360 / 4)


def test_traffic_is_added_up_by_collective() -> None:
    found = plan()
    keys = [(one.name, one.collective) for one in found.traffic]
    assert len(set(keys)) == len(keys)
    assert {"TP hidden states", "CP keys and values", "PP hidden states", "weights to servers"} <= {
        name for name, _ in keys
    }
    assert all(one.sent > 0 and one.seconds > 0 for one in found.traffic)


@pytest.mark.parametrize(
    ("layout", "engine", "reason", "words"),
    [
        (Layout(tensor=3), ENGINE, "TP does not divide key/value heads", "TP 3"),
        (replace(LAYOUT, data=3), ENGINE, "DP does not divide the prompts", "32 prompts .* DP 3"),
        (Layout(), Engine(1, 1), "trainer's memory", r"stage 0 needs \d+\.\d of 70\.8 GiB \(optimizer 92"),
        (LAYOUT, Engine(16, 8), "servers do not fit their GPUs", "TP 16 do not divide 8"),
        (LAYOUT, Engine(3, 24, False), "server TP does not divide attention heads", "server TP 3 of 32"),
    ],
)
def test_refusals_name_values(layout: Layout, engine: Engine, reason: str, words: str) -> None:
    import re

    found = refusal(layout, engine)
    assert found.reason == reason and re.search(words, found.message)


def test_a_server_without_room_for_its_cache() -> None:
    large = replace(PROBLEM, shape=QWEN3["qwen3-32b"])
    layout = Layout(8, 4, 1, 1, 1, 2, sequence=True, recompute="full")
    found = refusal(layout, Engine(1, 64), large)
    assert found.reason == "servers' memory" and 1 < found.miss < 3
    assert "4 longest sequences" in found.message


def test_stale_rollouts_need_gpus_of_their_own() -> None:
    stale = replace(PROBLEM, workload=replace(PROBLEM.workload, staleness=2))
    assert refusal(problem=stale).reason == "stale rollouts need GPUs of their own"


def test_the_miss_says_how_far() -> None:
    available = usable_bytes(PROBLEM.gpu, PROBLEM.assumptions)
    found = refusal(Layout(data=2), Engine(1, 2))
    assert found.reason == "trainer's memory" and found.miss > 1
    roomy = replace(PROBLEM, gpu=replace(PROBLEM.gpu, memory_bytes=80e9 * found.miss * 1.01))
    assert isinstance(plan_step(roomy, Layout(data=2), Engine(1, 2, False)), Plan)
    assert available == pytest.approx(0.95 * 80e9)


def test_without_rollouts_there_is_only_training() -> None:
    work = replace(PROBLEM.workload, rollouts=False, scored=False, teacher="none", distilled_share=0.0)
    found = plan(replace(PROBLEM, workload=work))
    phases = vars(found.phases)
    assert {name for name, seconds in phases.items() if seconds} == {"update", "optimizer"}
    assert found.engine_weights == 0
