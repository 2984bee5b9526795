"""Parameters per rank against the real Megatron model's."""

from dataclasses import replace

import pytest
import torch

from megatron_srpo.model.architecture import Qwen3Architecture
from megatron_srpo.model.build import build_policy
from megatron_srpo.model.parallel import initialize_parallel
from megatron_srpo.planner.layout import Layout
from megatron_srpo.planner.parameters import model_parameters, rank_parameters
from megatron_srpo.planner.shape import QWEN3, ModelShape
from tests.model.tiny import SMALL
from tests.planner.test_shape import MOE
from tests.ranks import run_ranks

VOCAB_MULTIPLE = 8  # a vocabulary of 100 is padded differently for each TP


def config(tied: bool) -> dict:
    return {
        **SMALL,
        "model_type": "qwen3",
        "num_hidden_layers": 4,
        "num_key_value_heads": 4,
        "vocab_size": 100,
        "tie_word_embeddings": tied,
    }


#: Parts by the names that Megatron-Core gives.
PARTS = {
    "embedding": "embedding.",
    "head": "output_layer.",
    "attention": ("linear_qkv.", "linear_proj."),
    "feed_forward": "mlp.linear_fc",
    "norms": "norm",
}


def part_of(name: str) -> str:
    """Norms first: a q_layernorm stands inside the attention."""
    if "norm" in name:
        return "norms"
    for part, words in PARTS.items():
        if any(word in name for word in ([words] if isinstance(words, str) else words)):
            return part
    raise AssertionError(name)


def count_on_rank(rank: int, world: int, layouts: list[tuple[int, int, bool]]) -> list[dict[str, int]]:
    """Build the real model in several layouts; return this rank's stage and parameters by part."""
    from megatron_srpo.model.megatron_core import parallel_state

    found = []
    for tensor, pipeline, tied in layouts:
        groups = initialize_parallel(tensor, pipeline)
        arch = Qwen3Architecture.from_hf_config(config(tied))
        model = build_policy(arch, groups, torch.float32, VOCAB_MULTIPLE)
        counts = dict.fromkeys([*PARTS, "experts", "router"], 0)
        for name, parameter in model.named_parameters():
            counts[part_of(name)] += parameter.numel()
        found.append({"stage": groups.pp_rank, **counts})
        parallel_state.destroy_model_parallel()
    return found


@pytest.mark.parametrize("tied", [True, False])
def test_every_rank_holds_what_is_predicted(tied: bool) -> None:
    """TP and PP from 1 to 4, on four real ranks."""
    layouts = [(1, 1, tied), (2, 1, tied), (4, 1, tied), (1, 2, tied), (2, 2, tied), (1, 4, tied)]
    shape = ModelShape.from_hf_config(config(tied))
    for ranks in run_ranks(4, count_on_rank, layouts):
        for (tensor, pipeline, _), counted in zip(layouts, ranks, strict=True):
            stage = counted.pop("stage")
            expected = rank_parameters(shape, Layout(tensor, pipeline), stage, VOCAB_MULTIPLE)
            assert vars(expected) == counted, (tensor, pipeline, stage)


@pytest.mark.parametrize("name", ["qwen3-4b", "qwen3-32b", "qwen3-30b-a3b", "qwen3-235b-a22b"])
@pytest.mark.parametrize("layout", [Layout(), Layout(4, 2, sequence=True), Layout(2, 1, expert=8, data=8)])
def test_ranks_add_up_to_the_model(name: str, layout: Layout) -> None:
    """Shards of all ranks, less what they hold alike: norms and router of TP, the padding, a tied copy."""
    shape = QWEN3[name]
    whole, stages = model_parameters(shape), range(layout.pipeline)
    ranks = [
        rank_parameters(shape, replace(layout, expert=layout.expert if shape.is_moe else 1), s)
        for s in stages
    ]
    experts = layout.expert if shape.is_moe else 1
    assert sum(rank.attention for rank in ranks) * layout.tensor == whole.attention
    assert sum(rank.feed_forward for rank in ranks) * layout.tensor == whole.feed_forward
    assert sum(rank.experts for rank in ranks) * experts == whole.experts
    assert sum(rank.norms for rank in ranks) == whole.norms
    assert sum(rank.router for rank in ranks) == whole.router
    padding = (shape.padded_vocab_size(layout.tensor) - shape.vocab_size) * shape.hidden_size
    tables = sum(rank.embedding + rank.head for rank in ranks) * layout.tensor
    copies = 2 if not shape.tied_embeddings or layout.pipeline > 1 else 1
    assert tables == copies * (whole.embedding + padding)


def test_an_expert_parallel_rank_holds_its_experts_only() -> None:
    shape = ModelShape.from_hf_config(MOE)
    one, four = (rank_parameters(shape, Layout(expert=size, data=4), 0) for size in (1, 4))
    assert one.experts == 4 * four.experts and one.dense == four.dense
    assert four.matrices == four.attention + four.experts
