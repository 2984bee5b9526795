"""An average that ranks with the same weights share is the one that a single rank would keep."""

from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist

from megatron_srpo.config.algorithm import AlgorithmConfig
from megatron_srpo.config.training import TeacherConfig
from megatron_srpo.model.chunks import named_parameters
from megatron_srpo.training import average
from tests.model.tiny import EXPERTS, write_random_qwen3
from tests.ranks import run_ranks
from tests.training.harness import Layout, make_trainer

RATE = 0.3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model")
    sizes = {"num_hidden_layers": 4, "num_key_value_heads": 4}  # four: enough for two stages of two chunks
    return str(write_random_qwen3(path, **sizes, tie_word_embeddings=True))


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_random_qwen3(tmp_path_factory.mktemp("mixture"), **EXPERTS))


def follow_a_policy(
    rank: int, world: int, folder: str, layout: Layout, offload: bool, block: int, dtype: torch.dtype
) -> dict[str, Any]:
    """Let the policy move three times; compare with an average of all weights that is kept here."""
    with patch.object(average, "BLOCK", block):
        return _follow_a_policy(folder, layout, offload, dtype)


def _follow_a_policy(folder: str, layout: Layout, offload: bool, dtype: torch.dtype) -> dict[str, Any]:
    groups = layout.initialize()
    teacher = TeacherConfig(ema_rate=RATE, offload=offload)
    trainer = make_trainer(folder, groups, AlgorithmConfig(name="srpo"), teacher, dtype=dtype, layout=layout)
    policy, copy = named_parameters(trainer.policy), trainer.teacher.copy
    assert copy is not None and trainer.teacher.average is not None
    expected = {name: value.detach().float().clone() for name, value in named_parameters(copy).items()}
    # Ranks with the same weights must move alike.
    generator = torch.Generator().manual_seed(5)
    for _ in range(3):
        with torch.no_grad():
            for name, value in policy.items():
                value.add_(torch.randn(value.shape, generator=generator) * 0.05)
                expected[name].lerp_(value.detach().float(), RATE)
        trainer.teacher.update()
    for name, value in named_parameters(copy).items():
        assert torch.equal(value, expected[name].to(dtype)), name
    saved = {name: part.values for name, part in trainer.teacher.average.to_save().items()}
    for name, value in saved.items():
        assert value.dtype == torch.float32 and torch.equal(value, expected[name]), name
    same: list[Any] = [None] * groups.dp_cp.size()
    dist.all_gather_object(same, sorted(name for name in saved if "experts" not in name), groups.dp_cp)
    return {
        "written": [name for names in same for name in names],
        "names": [name for name in expected if "experts" not in name],
        "held": sum(value.numel() for value in trainer.teacher.average.held),
        "all": sum(value.numel() for value in expected.values()),
    }


@pytest.mark.parametrize(
    ("world", "layout", "offload"),
    [
        (1, Layout(), True),
        (3, Layout(), False),
        (2, Layout(cp=2), True),
        (4, Layout(tp=2, sequence=True), False),
        (4, Layout(pp=2, distributed=True), False),
        (2, Layout(pp=2, virtual=2), True),
    ],
    ids=["one rank, offload", "dp3", "cp2, offload", "tp2dp2", "pp2dp2", "pp2 virtual2, offload"],
)
def test_it_is_the_whole_average_bit_for_bit(folder: str, world: int, layout: Layout, offload: bool) -> None:
    # Blocks of 997 elements: some begin and end within parameters, and the last one is shorter.
    ranks = run_ranks(world, follow_a_policy, folder, layout, offload, 997 * world, torch.bfloat16)
    sharing = world // (layout.tp * layout.pp)
    for found in ranks:
        assert sorted(found["written"]) == sorted(found["names"])  # each by one rank
        assert found["all"] / sharing <= found["held"] < found["all"] / sharing + 1


@pytest.mark.parametrize(("world", "ep"), [(2, 1), (2, 2), (4, 2)])
def test_experts_are_shared_by_the_ranks_that_have_them(mixture: str, world: int, ep: int) -> None:
    ranks = run_ranks(world, follow_a_policy, mixture, Layout(ep=ep), False, average.BLOCK, torch.bfloat16)
    whole = run_ranks(1, follow_a_policy, mixture, Layout(), False, average.BLOCK, torch.bfloat16)[0]
    # Every element of the model is kept once, but for what fills the parts up to one length.
    assert whole["all"] <= sum(found["held"] for found in ranks) <= whole["all"] + 2 * world


def test_fp32_weights_are_their_own_average(folder: str) -> None:
    for found in run_ranks(2, follow_a_policy, folder, Layout(), False, average.BLOCK, torch.float32):
        assert found["held"] == 0


@pytest.mark.parametrize("sizes", [[5], [1, 7, 4, 2], [3, 3, 3]])
@pytest.mark.parametrize("width", [1, 2, 4, 30])
def test_pieces_of_a_row_are_the_row(sizes: list[int], width: int) -> None:
    tensors = [torch.arange(size) + 100 * index for index, size in enumerate(sizes)]
    row = average._Row(sizes)
    whole = torch.cat(tensors)
    for start in range(0, row.size, width):
        found = torch.full((width,), -1)
        for index, inside, place in row.pieces(start, start + width):
            found[place] = tensors[index][inside]
        expected = whole[start : start + width]
        assert found[: len(expected)].equal(expected) and (found[len(expected) :] == -1).all()
