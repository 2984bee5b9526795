"""Buckets put together by several ranks hold, bit for bit, what an engine rank should hold."""

import pytest
import torch

from megatron_srpo.model.architecture import Qwen3Architecture
from megatron_srpo.model.stages import PipelineStages
from tests.model.tiny import EXPERTS, load_reference, stored_tensors, write_random_qwen3
from tests.ranks import RankFailure, run_ranks
from tests.weights.engine_reference import sglang_parameters

LIMIT = 3000  # elements: several buckets a lane, and embeddings larger than one


def policy(folder: str, tp: int, pp: int | PipelineStages, ep: int = 1) -> tuple:
    from megatron_srpo.model.build import build_policy
    from megatron_srpo.model.parallel import initialize_parallel
    from megatron_srpo.weights.load import load_hf, model_table
    from megatron_srpo.weights.plan import Training

    groups = initialize_parallel(tp, pp, expert=ep)
    arch = Qwen3Architecture.from_hf_folder(folder)
    model = build_policy(arch, groups, vocab_multiple=16)
    load_hf(model, arch, folder, groups)
    parameters = {entry.parameter: value for entry, value in model_table(model, arch, groups)}
    return groups, arch, parameters, Training(tp, groups.stages, arch.padded_vocab_size(tp, 16) // tp, ep)


def assembled(
    rank: int,
    world: int,
    folder: str,
    tp: int,
    pp: int | PipelineStages,
    engine_tp: int | None,
    dtype: torch.dtype,
    ep: int = 1,
) -> dict[tuple[int, str], torch.Tensor]:
    """Assemble everything the way a synchronisation does; return this rank's tensors by (lane, name)."""
    from megatron_srpo.weights.assemble import Assembly, BucketMemory
    from megatron_srpo.weights.plan import plan_shards, plan_whole

    groups, arch, parameters, training = policy(folder, tp, pp, ep)
    if engine_tp is None:
        plan = plan_whole(arch, training, range(training.ranks), LIMIT)
    else:
        plan = plan_shards(arch, training, engine_tp, LIMIT)
    assert len(plan.rounds) > 2, "the buffers must be used again"
    memory = BucketMemory(dtype, torch.device("cpu"))
    assembly = Assembly(plan, parameters, groups.copy, memory, timeout_s=60)
    result = {}
    assembly.post(0)
    for number in range(len(plan.rounds)):
        filled = assembly.finish(number)
        assembly.post(number + 1)
        for item in filled:
            assert item.bucket.assembler == groups.copy.rank()
            # Cloned: the buffer is used again two rounds later.
            result |= {(item.bucket.lane, name): tensor.clone() for name, tensor in item.tensors()}
    return result


LAYOUTS = [(1, 1, 1), (2, 1, 1), (1, 2, 1), (2, 2, 1), (2, 1, 2)]


@pytest.mark.parametrize("engine_tp", [1, 2])
@pytest.mark.parametrize(("tp", "pp", "dp"), LAYOUTS)
def test_engine_shards_are_assembled_bit_for_bit(tmp_path, tp, pp, dp, engine_tp):
    folder = write_random_qwen3(tmp_path, vocab_size=100, tie_word_embeddings=pp == 2)
    hf = dict(load_reference(folder).state_dict())
    arch = Qwen3Architecture.from_hf_folder(folder)
    results = run_ranks(tp * pp * dp, assembled, str(folder), tp, pp, engine_tp, torch.float32)
    together: dict = {}
    for result in results:
        together |= result
    for lane in range(engine_tp):
        for name, value in sglang_parameters(arch, hf, lane, engine_tp).items():
            assert torch.equal(together.pop((lane, name)), value), name
    assert not together


@pytest.mark.parametrize(
    "stages", [PipelineStages(2, 2), PipelineStages(2, 1, first=1), PipelineStages(2, 2, last=2)], ids=str
)
def test_stages_of_several_chunks_or_sizes_are_assembled_bit_for_bit(tmp_path, stages):
    layers = 6 if stages.last else 4
    folder = write_random_qwen3(tmp_path, num_hidden_layers=layers, vocab_size=100, tie_word_embeddings=True)
    hf, arch = dict(load_reference(folder).state_dict()), Qwen3Architecture.from_hf_folder(folder)
    results = run_ranks(2, assembled, str(folder), 1, stages, 1, torch.float32)
    together = {key: value for result in results for key, value in result.items()}
    for name, value in sglang_parameters(arch, hf, 0, 1).items():
        assert torch.equal(together.pop((0, name)), value), name
    assert not together


@pytest.mark.parametrize(("tp", "pp", "ep", "engine_tp"), [(1, 1, 4, 2), (2, 1, 2, 1), (1, 2, 2, 2)])
def test_experts_are_assembled_bit_for_bit(tmp_path, tp, pp, ep, engine_tp):
    """With experts over four replicas, each of which alone holds all the rest."""
    folder = write_random_qwen3(tmp_path, vocab_size=100, **EXPERTS)
    hf, arch = stored_tensors(folder), Qwen3Architecture.from_hf_folder(folder)
    ranks = max(tp, ep) * pp
    results = run_ranks(ranks, assembled, str(folder), tp, pp, engine_tp, torch.float32, ep)
    together = {key: value for result in results for key, value in result.items()}
    for lane in range(engine_tp):
        for name, value in sglang_parameters(arch, hf, lane, engine_tp).items():
            assert torch.equal(together.pop((lane, name)), value), name
    assert not together


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (2, 2)])
def test_whole_tensors_are_converted_where_they_lie(tmp_path, tp, pp):
    folder = write_random_qwen3(tmp_path)
    hf = load_reference(folder).state_dict()
    results = run_ranks(tp * pp, assembled, str(folder), tp, pp, None, torch.bfloat16)
    arrived = {name: value for result in results for (_, name), value in result.items()}
    assert arrived.keys() == hf.keys()
    assert all(torch.equal(arrived[name], hf[name].bfloat16()) for name in hf)
    assert all(result for result in results), "every rank assembles a share"


def held_bytes(rank: int, world: int, folder: str) -> tuple[int, int]:
    """Return the bytes of all buffers that a pass took, and of the model."""
    from megatron_srpo.weights.assemble import Assembly, BucketMemory
    from megatron_srpo.weights.plan import count, plan_shards

    groups, arch, parameters, training = policy(folder, 2, 1)
    plan = plan_shards(arch, training, 1, 1000)
    taken: list[torch.Tensor] = []

    class Counting(BucketMemory):
        def allocate(self, elements: int) -> torch.Tensor:
            taken.append(super().allocate(elements))
            return taken[-1]

    memory = Counting(torch.float32, torch.device("cpu"))
    assembly = Assembly(plan, parameters, groups.replica, memory, timeout_s=60)
    for _ in range(2):  # a second synchronisation takes nothing more
        for number in range(len(plan.rounds)):
            assembly.post(number)
            assembly.finish(number)
    counts = count(arch, plan)
    return sum(buffer.numel() for buffer in taken), counts.model


def test_an_assembler_holds_two_buckets_however_large_the_model_is(tmp_path):
    folder = write_random_qwen3(tmp_path, num_hidden_layers=12)
    largest = 96 * 32 + 32 * 32  # the embedding, padded to 128 rows
    (first, model), (second, _) = run_ranks(2, held_bytes, str(folder))
    assert first <= 2 * largest < model / 10
    assert second == 0


def lost_rank(rank: int, world: int, folder: str) -> None:
    """Rank 1 never sends."""
    from megatron_srpo.weights.assemble import Assembly, BucketMemory
    from megatron_srpo.weights.plan import plan_whole

    groups, arch, parameters, training = policy(folder, 2, 1)
    plan = plan_whole(arch, training, [0], 1 << 20)
    if rank == 1:
        return
    memory = BucketMemory(torch.float32, torch.device("cpu"))
    assembly = Assembly(plan, parameters, groups.replica, memory, timeout_s=1)
    assembly.post(0)
    assembly.finish(0)


def test_a_rank_that_does_not_answer_is_named(tmp_path):
    with pytest.raises(RankFailure) as failure:
        run_ranks(2, lost_rank, str(write_random_qwen3(tmp_path)))
    message = str(failure.value)
    assert "WeightError: weight synchronisation: rank 0 exchanged slices of bucket 0 of lane 0" in message
    assert "with ranks [1]; no answer within 1 s" in message
