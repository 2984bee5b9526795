"""The table: complete, without overlap, and equal to an independent statement of Megatron-Core's layout."""

from collections import Counter

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_srpo.model.architecture import Experts
from megatron_srpo.model.stages import PipelineStages
from megatron_srpo.weights.table import (
    Box,
    Entry,
    Place,
    format_table,
    hf_shapes,
    owners_by_tensor,
    places,
    rank_table,
)
from tests.weights.reference import EXPERTS, make_arch, shard


@st.composite
def pipelines(draw: st.DrawFn) -> tuple[PipelineStages, int]:
    """Pipeline stages, even or not, in one piece or several, and the number of layers that they share."""
    size, chunks = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 2]))
    count = draw(st.integers(1, 2)) * chunks
    if size == 1:
        return PipelineStages(), count
    first, last = (draw(st.sampled_from([None, chunks, 3 * chunks])) for _ in range(2))
    middle = size - 2
    ends = (first or count) + (last or count)
    return PipelineStages(size, chunks, first, last), ends + middle * count


@st.composite
def layouts(draw: st.DrawFn) -> tuple:
    """An architecture that the layout can split, the layout, and the rows of a vocabulary shard."""
    tp = draw(st.sampled_from([1, 2, 3]))
    kv_heads = tp * draw(st.integers(1, 2))
    stages, layers = draw(pipelines())
    experts, ep = None, 1
    if draw(st.booleans()):
        ep = draw(st.sampled_from([n for n in (1, 2, 3, 4, 6) if n % tp == 0 or tp % n == 0]))
        dense = draw(st.sets(st.integers(0, layers - 1), max_size=layers - 1))
        experts = Experts(
            count=ep * draw(st.integers(1, 2)),
            per_token=1,
            ffn_hidden_size=draw(st.integers(1, 3)),
            renormalize=False,
            dense_layers=tuple(sorted(dense)),
        )
    arch = make_arch(
        num_layers=layers,
        experts=experts,
        hidden_size=draw(st.integers(1, 6)),
        ffn_hidden_size=tp * draw(st.integers(1, 3)),
        num_kv_heads=kv_heads,
        num_heads=kv_heads * draw(st.integers(1, 3)),
        head_dim=draw(st.integers(1, 3)),
        vocab_size=draw(st.integers(1, 20)),
        tied_embeddings=draw(st.booleans()),
    )
    return arch, tp, stages, ep, arch.padded_vocab_size(tp, draw(st.integers(1, 4))) // tp


@settings(deadline=None)
@given(layout=layouts())
def test_every_element_of_every_hf_tensor_has_exactly_one_owner(layout):
    arch, tp, stages, ep, rows = layout
    counts = {name: torch.zeros(shape, dtype=torch.int) for name, shape in hf_shapes(arch).items()}
    for owners in owners_by_tensor(arch, tp, stages, rows, ep).values():
        for owned in owners:
            counts[owned.piece.hf_name][owned.piece.source.slices] += 1
    assert all(bool((count == 1).all()) for count in counts.values())


@settings(deadline=None)
@given(layout=layouts())
def test_every_element_of_every_shard_is_filled_once_except_padding(layout):
    arch, tp, stages, ep, rows = layout
    for place in places(tp, stages, ep):
        for entry in rank_table(arch, place, rows):
            count = torch.zeros(entry.shape, dtype=torch.int)
            for piece in entry.pieces:
                assert piece.source.shape == piece.target.shape
                count[piece.target.slices] += 1
            if entry.parameter.endswith(("word_embeddings.weight", "output_layer.weight")):
                real = min(max(arch.vocab_size - place.tp_rank * rows, 0), rows)
                assert bool((count[:real] == 1).all()) and not count[real:].any()
            else:
                assert bool((count == 1).all())


@settings(deadline=None)
@given(layout=layouts())
def test_shards_equal_an_independent_statement_of_the_layout(layout):
    arch, tp, stages, ep, rows = layout
    generator = torch.Generator().manual_seed(0)
    hf = {name: torch.randn(shape, generator=generator) for name, shape in hf_shapes(arch).items()}
    for place in places(tp, stages, ep):
        for entry in rank_table(arch, place, rows):
            local = torch.zeros(entry.shape)
            for piece in entry.pieces:
                local[piece.target.slices] = hf[piece.hf_name][piece.source.slices]
            assert torch.equal(local, shard(arch, hf, entry.parameter, place, rows))


@settings(deadline=None)
@given(layout=layouts())
def test_copies_are_what_other_ranks_hold_too_and_the_tied_head(layout):
    arch, tp, stages, ep, rows = layout
    for place in places(tp, stages, ep):
        for entry in rank_table(arch, place, rows):
            whole = entry.parameter.endswith(("norm.weight", "router.weight"))
            holders = 1 if whole else ep if ".experts." in entry.parameter else tp
            tied_head = entry.parameter.endswith("output_layer.weight") and arch.tied_embeddings
            assert entry.owner == (not tied_head and place.rank < holders)


def test_hf_names_and_shapes_are_those_of_transformers():
    from tests.model.tiny import SMALL, random_qwen3

    arch = make_arch(
        num_layers=2,
        hidden_size=32,
        ffn_hidden_size=48,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        vocab_size=SMALL["vocab_size"],
    )
    state = random_qwen3().state_dict()
    assert hf_shapes(arch) == {name: tuple(value.shape) for name, value in state.items()}


def test_a_mixtures_names_and_shapes_are_those_of_its_files(tmp_path):
    from megatron_srpo.model.architecture import Qwen3Architecture
    from tests.model.tiny import EXPERTS, stored_tensors, write_random_qwen3

    folder = write_random_qwen3(tmp_path, **EXPERTS, mlp_only_layers=[0])
    expected = {name: tuple(value.shape) for name, value in stored_tensors(folder).items()}
    assert hf_shapes(Qwen3Architecture.from_hf_folder(folder)) == expected


def test_an_expert_lies_whole_on_one_rank_of_its_group():
    table = rank_table(make_arch(experts=EXPERTS), Place(1, 1, 0, ep_size=2), 10)
    pieces = {
        (piece.hf_name, str(piece.target))
        for entry in table
        for piece in entry.pieces
        if ".experts." in piece.hf_name
    }
    assert ("model.layers.0.mlp.experts.2.gate_proj.weight", "[0:4, 0:12]") in pieces
    assert ("model.layers.0.mlp.experts.2.up_proj.weight", "[4:8, 0:12]") in pieces
    assert ("model.layers.1.mlp.experts.3.down_proj.weight", "[0:12, 0:4]") in pieces
    assert len(pieces) == 2 * 2 * 3


def test_tied_models_have_one_embedding_and_a_head_only_on_another_stage():
    arch = make_arch(tied_embeddings=True)
    assert "lm_head.weight" not in hf_shapes(arch)

    def heads(pp: int) -> list[Entry]:
        table = [entry for place in places(1, PipelineStages(pp)) for entry in rank_table(arch, place, 10)]
        return [entry for entry in table if entry.parameter == "output_layer.weight"]

    assert heads(1) == []
    (copy,) = heads(2)
    assert copy.pieces[0].hf_name == "model.embed_tokens.weight" and not copy.owner


def test_parameters_count_layers_from_zero_in_every_stage():
    arch = make_arch(num_layers=4)
    layers = [
        Counter(e.parameter.split(".")[2] for e in rank_table(arch, place, 10) if "layers" in e.parameter)
        for place in places(1, PipelineStages(2))
    ]
    assert layers[0] == layers[1] == {"0": 8, "1": 8}


def test_it_prints_readably():
    table = rank_table(make_arch(), Place(1, 2, 0), 8)
    text = format_table(table)
    assert "embedding.word_embeddings.weight [8, 12]" in text
    assert "    model.embed_tokens.weight[8:10, 0:12] -> [0:2, 0:12]" in text
    # one key/value head per rank: two query heads, then its key, then its value
    qkv = text[text.index("decoder.layers.0.self_attention.linear_qkv.weight") :].splitlines()[1:4]
    assert qkv == [
        "    model.layers.0.self_attn.q_proj.weight[6:12, 0:12] -> [0:6, 0:12]",
        "    model.layers.0.self_attn.k_proj.weight[3:6, 0:12] -> [6:9, 0:12]",
        "    model.layers.0.self_attn.v_proj.weight[3:6, 0:12] -> [9:12, 0:12]",
    ]
    assert "decoder.final_layernorm.weight [12]  (copy)" in text


def test_boxes():
    box = Box((2, 0), (5, 4))
    assert box.shape == (3, 4) and box.size == 12
    assert box.slices == (slice(2, 5), slice(0, 4))
    assert str(box) == "[2:5, 0:4]"
