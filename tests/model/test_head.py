"""Gradients through the policy head, in Megatron-Core's DDP and schedules, against transformers' autograd.

The head's weight is used outside the module's forward (in the loss). These tests show that its gradient, and
with tied embeddings the sum of both uses, still arrives complete in ``main_grad`` in every layout.
"""

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from megatron_srpo.model.architecture import Qwen3Architecture
from tests.model.tiny import load_reference, write_random_qwen3
from tests.ranks import run_ranks

VOCAB = 96
MICRO_BATCHES = (((9, 3), 1), ((14, 6, 2), 2))  # (sequence lengths, seed) each


def _sequences(lengths: tuple[int, ...], seed: int) -> list[list[int]]:
    generator = random.Random(seed)
    return [[generator.randrange(VOCAB) for _ in range(length)] for length in lengths]


def _coefficients_TV(tokens: int, seed: int) -> torch.Tensor:
    """The loss is ``sum(coefficients * logits)``: its gradient is different at every token and column."""
    return torch.randn(tokens, VOCAB, generator=torch.Generator().manual_seed(seed))


def reference_gradients(folder: str) -> dict[str, torch.Tensor]:
    model = load_reference(folder)
    for lengths, seed in MICRO_BATCHES:
        coefficients_TV = _coefficients_TV(sum(lengths), seed)
        logits = [model(torch.tensor([s])).logits[0] for s in _sequences(lengths, seed)]
        (torch.cat(logits) * coefficients_TV).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def megatron_gradients(
    rank: int, world: int, folder: str, tp: int, pp: int
) -> list[tuple[str, Any, torch.Tensor, bool]]:
    """Return (Hugging Face tensor, box, gradient of the box, owner) for every piece of this rank."""
    from megatron_srpo.model.build import build_policy
    from megatron_srpo.model.megatron_core import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
        finalize_model_grads,
    )
    from megatron_srpo.model.parallel import initialize_parallel
    from megatron_srpo.weights.load import load_hf, model_table

    groups = initialize_parallel(tp, pp)
    arch = Qwen3Architecture.from_hf_folder(folder)
    model = build_policy(arch, groups, vocab_multiple=8)
    load_hf(model, arch, folder, groups)
    model.config.finalize_model_grads_func = finalize_model_grads
    ddp_config = DistributedDataParallelConfig(grad_reduce_in_fp32=True)
    wrapped = DistributedDataParallel(model.config, ddp_config, model)
    wrapped.zero_grad_buffer()
    _forward_backward(wrapped, groups, arch)
    return [
        (piece.hf_name, piece.source, parameter.main_grad[piece.target.slices].clone(), entry.owner)
        for entry, parameter in model_table(wrapped, arch, groups)
        for piece in entry.pieces
    ]


def _forward_backward(model: torch.nn.Module, groups: Any, arch: Qwen3Architecture) -> None:
    from megatron_srpo.model.head import head_weight
    from megatron_srpo.model.megatron_core import get_forward_backward_func
    from megatron_srpo.model.packing import pack_tokens
    from megatron_srpo.ops import VocabShard, vocab_parallel_logits

    shard = VocabShard(groups.tp, arch.vocab_size, arch.padded_vocab_size(groups.tp_size, 8))

    def forward_step(iterator: Iterator, stage: torch.nn.Module) -> tuple:
        lengths, seed = next(iterator)
        packed = pack_tokens(_sequences(lengths, seed))
        output = stage(
            packed.tokens_1T, packed.position_ids_1T, None, packed_seq_params=packed.packed_seq_params
        )

        def loss(hidden_1TH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict]:
            logits_TV = vocab_parallel_logits(hidden_1TH[0], head_weight(model), shard)
            mine = _coefficients_TV(sum(lengths), seed)[:, shard.start : shard.start + shard.valid_local]
            total = (logits_TV[:, : shard.valid_local] * mine).sum()
            # one "token" in all, so that nothing is divided
            return total, torch.tensor(int(seed == 1), dtype=torch.int), {}

        return output, loss

    get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=iter(MICRO_BATCHES),
        model=model,
        num_microbatches=len(MICRO_BATCHES),
        seq_length=1,
        micro_batch_size=1,
        forward_only=False,
    )


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_gradients_equal_transformers(tmp_path, tp, pp, tied):
    folder = str(write_random_qwen3(tmp_path, tie_word_embeddings=tied))
    expected = reference_gradients(folder)
    gathered = {name: torch.full_like(gradient, float("nan")) for name, gradient in expected.items()}
    copies = 0
    for pieces in run_ranks(tp * pp, megatron_gradients, folder, tp, pp):
        for name, box, gradient, owner in pieces:
            scale = float(expected[name].abs().max())
            # replicated norms and the tied head's copy must agree with the reference as well
            torch.testing.assert_close(gradient, expected[name][box.slices], atol=3e-5 * scale, rtol=0)
            copies += not owner
            if owner:
                gathered[name][box.slices] = gradient
    assert not any(gradient.isnan().any() for gradient in gathered.values())
    assert (copies > 0) == (tp > 1 or (tied and pp > 1))


def head_facts(rank: int, world: int, folder: str, tied: bool) -> dict[str, Any]:
    from megatron_srpo.model.build import build_policy
    from megatron_srpo.model.chunks import policies
    from megatron_srpo.model.head import PolicyHead, head_weight
    from megatron_srpo.model.megatron_core import DistributedDataParallel, DistributedDataParallelConfig
    from megatron_srpo.model.parallel import initialize_parallel

    groups = initialize_parallel(1, world)
    model = build_policy(Qwen3Architecture.from_hf_folder(folder), groups)
    wrapped = DistributedDataParallel(model.config, DistributedDataParallelConfig(), model)
    facts: dict[str, Any] = {
        "unwrapped": policies(wrapped) == [model],
        "parameters": {name for name, _ in model.named_parameters()},
    }
    if groups.is_last_stage:
        weight = head_weight(wrapped)
        hidden = torch.randn(5, 1, 32)
        facts["is_head"] = isinstance(model.output_layer, PolicyHead)
        facts["identity"] = model.output_layer(hidden, weight)[0] is hidden
        facts["marked"] = weight.is_embedding_or_output_parameter and weight.tensor_model_parallel
        shared = tied and world == 1
        own = model.embedding.word_embeddings.weight if shared else model.output_layer.weight
        facts["weight"] = weight is own
        state = model.sharded_state_dict(metadata={"dp_cp_group": groups.dp})
        facts["key"] = None if shared else state["output_layer.weight"].key
    else:
        with pytest.raises(AssertionError, match="only the last pipeline stage"):
            head_weight(wrapped)
    return facts


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("world", [1, 2])
def test_head_takes_over_the_output_layer(tmp_path, world, tied):
    folder = str(write_random_qwen3(tmp_path, tie_word_embeddings=tied))
    results = run_ranks(world, head_facts, folder, tied)
    last = results[-1]
    assert all(facts["unwrapped"] for facts in results)
    assert last["is_head"] and last["identity"] and last["marked"] and last["weight"]
    assert ("output_layer.weight" in last["parameters"]) == (not tied or world == 2)
    # an untied head keeps its checkpoint key; a tied copy is stored as the embedding that it copies
    expected = {(False, 1): "output_layer.weight", (False, 2): "output_layer.weight"}
    expected |= {(True, 1): None, (True, 2): "embedding.word_embeddings.weight"}
    assert last["key"] == expected[tied, world]
