"""Seconds of passes and of sampling: limits that can be computed by hand, and what must grow or shrink."""

from dataclasses import replace

import pytest

from megatron_srpo.planner.assumptions import Assumptions
from megatron_srpo.planner.hardware import GPUS
from megatron_srpo.planner.layout import Layout
from megatron_srpo.planner.parameters import active_parameters, model_parameters
from megatron_srpo.planner.rollout_time import Servers, weight_bytes
from megatron_srpo.planner.shape import QWEN3
from megatron_srpo.planner.training_time import Trainer
from megatron_srpo.planner.workload import Workload

DENSE, MOE, H100 = QWEN3["qwen3-8b"], QWEN3["qwen3-30b-a3b"], GPUS["h100"]
#: Nothing but matrix products, at the full peak.
IDEAL = replace(
    Assumptions(),
    matmul=1.0,
    attention=1e9,
    bandwidth=1e9,
    layer_launch_s=1e-12,
    packing_fill=1.0,
    straggler=1e-12,
    gradient_overlap=1.0,
    collective_latency_s=1e-12,
    nvlink=1e9,
    network=1e9,
)
WORK = Workload(prompts=64, samples=8, prompt_tokens=1024, response_tokens=1024, max_response_tokens=1024)


def trainer(layout: Layout, work: Workload = WORK, assumed: Assumptions = IDEAL, **changes: float) -> Trainer:
    return Trainer(DENSE, layout, work, H100, replace(assumed, **changes))


def products(work: Workload, layers: float, head: float) -> float:
    """Operations of ``layers`` passes through the layers and ``head`` products of the head."""
    table = DENSE.padded_vocab_size(1) * DENSE.hidden_size
    matrices = DENSE.num_layers * (DENSE.attention_matrix + DENSE.feed_forward_matrix)
    responses = work.sequences * work.response_tokens
    return 2 * (layers * work.tokens * matrices + head * responses * table)


def test_an_ideal_update_takes_its_matrix_products() -> None:
    """Three passes' worth, four with recomputation; the head three products, and the teacher's share."""
    silent = replace(WORK, teacher="none", distilled_share=0.0, micro_batch_tokens=4096)
    found = trainer(Layout(), silent).update().seconds
    assert found == pytest.approx(products(silent, 3, 3) / H100.bf16_flops, rel=1e-3)
    again = trainer(Layout(recompute="full"), silent).update().seconds
    assert again == pytest.approx(products(silent, 4, 3) / H100.bf16_flops, rel=1e-3)
    taught = replace(WORK, distilled_share=0.5, micro_batch_tokens=4096)
    found = trainer(Layout(), taught).update().seconds
    assert found == pytest.approx(products(taught, 3, 3.5) / H100.bf16_flops, rel=1e-3)


def test_replicas_and_shards_share_the_work() -> None:
    one = trainer(Layout()).update().seconds
    assert trainer(Layout(data=8)).update().seconds == pytest.approx(one / 8, rel=0.02)
    assert trainer(Layout(tensor=4, sequence=True)).update().seconds == pytest.approx(one / 4, rel=0.02)
    assert trainer(Layout(context=2)).update().seconds == pytest.approx(one / 2, rel=0.02)


def test_a_pipeline_has_its_bubble() -> None:
    """m + (p - 1) / v rounds of the slowest stage: the last one, with the head."""
    work = replace(WORK, prompts=8, samples=1, teacher="none", micro_batch_tokens=2048)  # eight micro-batches
    flops, table = H100.bf16_flops, DENSE.padded_vocab_size(1) * DENSE.hidden_size
    layer = 3 * 2 * 2048 * (DENSE.attention_matrix + DENSE.feed_forward_matrix) / flops
    stage = 9 * layer + 3 * 2 * 1024 * table / flops
    assert trainer(Layout(pipeline=4), work).update().seconds == pytest.approx((8 + 3) * stage, rel=1e-3)
    interleaved = trainer(Layout(pipeline=4, virtual_pipeline=3), work).update().seconds
    assert interleaved == pytest.approx((8 + 1) * stage, rel=1e-3)


def test_small_micro_batches_pay_for_their_launches() -> None:
    work = replace(WORK, prompts=4, samples=1, teacher="none", micro_batch_tokens=2048)
    slow = trainer(Layout(), work, layer_launch_s=1.0).update().seconds
    assert slow > 4 * 36 * 2 * 1.0  # micro-batches x layers x (forward, backward)


def test_scoring_and_teaching_are_forward_only_over_their_rollouts() -> None:
    work = replace(WORK, distilled_share=0.25, teacher_prompt_tokens=1024, micro_batch_tokens=4096)
    scoring = trainer(Layout(), work).scoring().seconds
    assert scoring == pytest.approx(products(work, 1, 1) / H100.bf16_flops, rel=1e-3)
    assert trainer(Layout(), work).teaching().seconds == pytest.approx(scoring / 4, rel=1e-3)
    assert trainer(Layout(), replace(work, reference=True)).scoring().seconds == pytest.approx(2 * scoring)
    assert trainer(Layout(), replace(work, scored=False)).scoring().seconds == 0
    assert trainer(Layout(), replace(work, teacher="none")).teaching().seconds == 0
    blend = trainer(Layout(), replace(work, teacher="trust_region")).teaching().seconds
    assert blend == pytest.approx(scoring / 2, rel=1e-3)


def test_the_optimizer_streams_its_share() -> None:
    layout, work = Layout(data=4), replace(WORK, teacher="none")
    expected = 30 * model_parameters(DENSE).total / 4 / (H100.bandwidth * 0.8)
    assert trainer(layout, work, bandwidth=0.8).optimizer().seconds == pytest.approx(expected, rel=1e-2)


def test_the_average_streams_its_share_and_gathers_the_rest() -> None:
    count, layout = model_parameters(DENSE).total, Layout(data=4)
    quiet = trainer(layout, replace(WORK, teacher="none"), bandwidth=0.8).optimizer().seconds
    found = trainer(layout, bandwidth=0.8).optimizer()
    (gathered,) = found.traffic
    assert gathered.collective == "all-gather" and gathered.sent == pytest.approx(2 * count * 3 / 4, rel=1e-2)
    streamed = (10 / 4 + 6) * count / (H100.bandwidth * 0.8)
    assert found.seconds - quiet == pytest.approx(streamed, rel=1e-2)  # IDEAL's links cost nothing
    slow = trainer(layout, bandwidth=0.8, nvlink=0.75).optimizer()
    assert slow.seconds - found.seconds == pytest.approx(slow.traffic[0].seconds, rel=1e-2)
    whole = trainer(replace(layout, dtype="float32"), bandwidth=0.8).optimizer()
    assert whole.traffic == ()


def test_what_lies_in_host_memory_crosses_pcie() -> None:
    """There and back: 12 bytes of optimizer state, 4 of the average. 2 of the teacher's weights there for its
    pass, and back after its update."""
    count, layout = model_parameters(DENSE).total, Layout(data=4)
    speed = H100.host_link * IDEAL.host_link
    plain = trainer(layout)
    adam = trainer(replace(layout, offload_optimizer=True))
    more = adam.optimizer().seconds - plain.optimizer().seconds
    assert more == pytest.approx(24 * count / 4 / speed, rel=1e-2)
    assert adam.teaching().seconds == plain.teaching().seconds
    teacher = trainer(replace(layout, offload_teacher=True))
    more = teacher.optimizer().seconds - plain.optimizer().seconds
    assert more == pytest.approx((8 / 4 + 2) * count / speed, rel=1e-2)
    assert teacher.teaching().seconds - plain.teaching().seconds == pytest.approx(2 * count / speed, rel=1e-2)
    live = replace(WORK, teacher="live")
    assert trainer(replace(layout, offload_teacher=True), live).teaching() == trainer(layout, live).teaching()


def test_overlap_hides_gradients_behind_backward_only() -> None:
    slow = {"network": 1e-2, "nvlink": 1e-2}
    hidden, shown = (trainer(Layout(data=16), gradient_overlap=share, **slow) for share in (1.0, 1e-9))
    reduction = sum(one.seconds for one in shown.update().traffic if "DP" in one.name)
    assert shown.update().seconds - hidden.update().seconds <= reduction
    assert hidden.update().seconds > trainer(Layout(data=16)).update().seconds


# -------------------- sampling

QUICK = replace(
    Assumptions(), decode_step_s=1e-12, decode_sequence_s=1e-12, decode_matmul=1.0, decode_bandwidth=1.0
)
EQUAL = Workload(
    prompts=8, samples=1, prompt_tokens=1, response_tokens=1000, max_response_tokens=1000, distilled_share=0.0
)


def servers(
    work: Workload = EQUAL, assumed: Assumptions = QUICK, cache: float = 40e9, **changes: int
) -> Servers:
    sizes = {"gpus": 1, "tensor": 1, **changes}
    return Servers(DENSE, work, H100, assumed, sizes["gpus"], sizes["tensor"], cache)


def test_equal_responses_take_steps_that_read_weights_and_caches() -> None:
    one = servers()
    weights = 2 * (model_parameters(DENSE).total - model_parameters(DENSE).embedding)
    cache = 8 * 501 * 2 * 2 * 8 * 128 * 36
    assert one.running == 8
    assert one.seconds() == pytest.approx(1000 * (weights + cache) / H100.bandwidth, rel=1e-3)


def test_large_batches_are_bound_by_products() -> None:
    many = servers(replace(EQUAL, prompts=4096), cache=1e15)
    flops = 2 * 1024 * active_parameters(DENSE)
    assert many.running == 1024
    assert many.step_seconds(1024, 1) == pytest.approx(flops / H100.bf16_flops, rel=1e-6)


def test_a_small_cache_makes_waves() -> None:
    room = servers(replace(EQUAL, prompts=64))
    scarce = servers(replace(EQUAL, prompts=64), cache=16 * 1000 * room.kv_bytes_per_token)
    assert 16 <= scarce.running < 18
    assert scarce.seconds() > 3 * room.seconds()


def test_the_longest_response_is_waited_for() -> None:
    """With as many tokens, a longer tail takes longer; with stale rollouts the tail is filled up."""
    even = Workload(prompts=16, response_tokens=2000, max_response_tokens=2000, micro_batch_tokens=4000)
    uneven = replace(even, max_response_tokens=8000, micro_batch_tokens=9000)
    assert servers(uneven, cache=1e15).seconds() > 1.5 * servers(even, cache=1e15).seconds()
    stale = replace(uneven, staleness=4)
    assert servers(stale, cache=1e15).running == 4 * servers(uneven, cache=1e15).running
    assert servers(stale, cache=1e15).steady_seconds() < servers(uneven, cache=1e15).seconds()


def test_of_experts_only_the_wanted_are_read() -> None:
    whole = model_parameters(MOE)
    assert weight_bytes(MOE, 1) == pytest.approx(
        2 * (whole.dense - whole.embedding + whole.experts * 8 / 128)
    )
    assert weight_bytes(MOE, 10_000) == pytest.approx(2 * (whole.total - whole.embedding))


def test_servers_share_prompts_and_shards_share_reading() -> None:
    two = servers(gpus=2)
    assert two.count == 2 and two.each == 4 and two.seconds() < servers().seconds()
    split = servers(gpus=2, tensor=2)
    assert split.kv_bytes_per_token == servers().kv_bytes_per_token / 2
    assert (
        servers(gpus=16, tensor=16).kv_bytes_per_token == servers().kv_bytes_per_token / 8
    )  # one head is least


# -------------------- lengths


@pytest.mark.parametrize(("mean", "longest"), [(1000, 1000), (3000, 4000), (500, 8000)])
def test_the_lengths_have_the_given_mean_and_maximum(mean: int, longest: int) -> None:
    work = Workload(response_tokens=mean, max_response_tokens=longest, micro_batch_tokens=20000)
    steps = 20000
    running = [work.still_running((part + 0.5) / steps * longest) for part in range(steps)]
    assert sum(running) / steps * longest == pytest.approx(mean, rel=1e-3)
    assert work.still_running(longest) == 0
    # E[L^2] by integrating 2 x P(L > x).
    squared = (
        sum(2 * (part + 0.5) / steps * longest * share for part, share in enumerate(running))
        / steps
        * longest
    )
    exact = work.prompt_tokens**2 + 2 * work.prompt_tokens * mean + squared
    assert work.attended_tokens == pytest.approx(exact / work.sequence_tokens, rel=1e-3)
