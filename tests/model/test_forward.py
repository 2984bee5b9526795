"""One forward pass without a loss, and transformers beside a prepared Megatron-Core."""

import math
from typing import Any

import torch

from megatron_srpo.model.architecture import Qwen3Architecture
from tests.model.tiny import load_reference, write_random_qwen3
from tests.ranks import run_ranks

SEQUENCES = [[1, 2, 3, 4, 5], [6, 7]]


def forward(rank: int, world: int, folder: str, tp: int, pp: int) -> dict[str, Any]:
    from megatron_srpo.model.build import build_policy
    from megatron_srpo.model.forward import full_logits, last_hidden_states
    from megatron_srpo.model.packing import pack_tokens
    from megatron_srpo.model.parallel import initialize_parallel
    from megatron_srpo.weights.load import load_hf

    groups = initialize_parallel(tp, pp)
    arch = Qwen3Architecture.from_hf_folder(folder)
    model = build_policy(arch, groups)
    load_hf(model, arch, folder, groups)
    batch = pack_tokens(SEQUENCES)
    hidden = last_hidden_states(model, groups, batch)
    logits = full_logits(model, groups, batch, arch.vocab_size)
    return {"hidden": hidden, "logits": logits, "gradients": [p.grad for p in model.parameters()]}


@torch.no_grad()
def _reference_hidden(folder: str) -> torch.Tensor:
    model = load_reference(folder).model
    return torch.cat([model(torch.tensor([sequence])).last_hidden_state[0] for sequence in SEQUENCES])


def test_hidden_states_are_those_after_the_final_norm(tmp_path):
    folder = str(write_random_qwen3(tmp_path))
    expected = _reference_hidden(folder)
    for result in run_ranks(2, forward, folder, 2, 1):
        # fp32 rounding over two layers; values are of size 1 after the final norm
        torch.testing.assert_close(result["hidden"], expected, atol=1e-5, rtol=1e-5)
        assert result["logits"].shape == (7, 96)
        assert not result["hidden"].requires_grad and set(result["gradients"]) == {None}


def test_only_the_last_stage_has_an_answer(tmp_path):
    folder = str(write_random_qwen3(tmp_path))
    first, last = run_ranks(2, forward, folder, 1, 2)
    assert first["hidden"] is None and first["logits"] is None
    torch.testing.assert_close(last["hidden"], _reference_hidden(folder), atol=1e-5, rtol=1e-5)


def rope_frequencies(rank: int, world: int, folder: str) -> list[torch.Tensor]:
    import megatron_srpo.model.megatron_core  # noqa: F401  makes Megatron-Core usable on this machine

    return [load_reference(folder).model.rotary_emb.inv_freq for _ in range(2)]


def test_transformers_still_loads_rope_frequencies_beside_megatron(tmp_path):
    # transformers builds models under ``torch.device("meta")``; with torch's factory functions wrapped for
    # Megatron-Core on a CPU, the frequencies were once left uninitialised
    folder = str(write_random_qwen3(tmp_path))
    expected = [math.exp(-math.log(10000.0) * 2 * index / 16) for index in range(8)]
    for frequencies in run_ranks(1, rope_frequencies, folder)[0]:
        torch.testing.assert_close(frequencies, torch.tensor(expected))
