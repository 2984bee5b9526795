"""The table: complete, without overlap, and equal to an independent statement of Megatron-Core's layout."""

from collections import Counter

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_srpo.weights.table import (
    Box,
    Entry,
    Place,
    format_table,
    hf_shapes,
    owners_by_tensor,
    rank_table,
)
from tests.weights.reference import make_arch, shard


@st.composite
def layouts(draw: st.DrawFn) -> tuple:
    """An architecture that the layout can split, the layout, and the rows of a vocabulary shard."""
    tp, pp = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 2]))
    kv_heads = tp * draw(st.integers(1, 2))
    arch = make_arch(
        num_layers=pp * draw(st.integers(1, 2)),
        hidden_size=draw(st.integers(1, 6)),
        ffn_hidden_size=tp * draw(st.integers(1, 3)),
        num_kv_heads=kv_heads,
        num_heads=kv_heads * draw(st.integers(1, 3)),
        head_dim=draw(st.integers(1, 3)),
        vocab_size=draw(st.integers(1, 20)),
        tied_embeddings=draw(st.booleans()),
    )
    return arch, tp, pp, arch.padded_vocab_size(tp, draw(st.integers(1, 4))) // tp


def places(tp: int, pp: int) -> list[Place]:
    return [Place(t, tp, p, pp) for p in range(pp) for t in range(tp)]


@settings(deadline=None)
@given(layout=layouts())
def test_every_element_of_every_hf_tensor_has_exactly_one_owner(layout):
    arch, tp, pp, rows = layout
    counts = {name: torch.zeros(shape, dtype=torch.int) for name, shape in hf_shapes(arch).items()}
    for owners in owners_by_tensor(arch, tp, pp, rows).values():
        for owned in owners:
            counts[owned.piece.hf_name][owned.piece.source.slices] += 1
    assert all(bool((count == 1).all()) for count in counts.values())


@settings(deadline=None)
@given(layout=layouts())
def test_every_element_of_every_shard_is_filled_once_except_padding(layout):
    arch, tp, pp, rows = layout
    for place in places(tp, pp):
        for entry in rank_table(arch, place, rows):
            count = torch.zeros(entry.shape, dtype=torch.int)
            for piece in entry.pieces:
                assert piece.source.shape == piece.target.shape
                count[piece.target.slices] += 1
            if entry.parameter in ("embedding.word_embeddings.weight", "output_layer.weight"):
                real = min(max(arch.vocab_size - place.tp_rank * rows, 0), rows)
                assert bool((count[:real] == 1).all()) and not count[real:].any()
            else:
                assert bool((count == 1).all())


@settings(deadline=None)
@given(layout=layouts())
def test_shards_equal_an_independent_statement_of_the_layout(layout):
    arch, tp, pp, rows = layout
    generator = torch.Generator().manual_seed(0)
    hf = {name: torch.randn(shape, generator=generator) for name, shape in hf_shapes(arch).items()}
    for place in places(tp, pp):
        for entry in rank_table(arch, place, rows):
            local = torch.zeros(entry.shape)
            for piece in entry.pieces:
                local[piece.target.slices] = hf[piece.hf_name][piece.source.slices]
            parts = entry.parameter.split(".")
            stage_start = place.pp_rank * arch.num_layers // pp
            index = stage_start + int(parts[2]) if parts[1] == "layers" else -1
            assert torch.equal(local, shard(arch, hf, entry.parameter, index, place.tp_rank, tp, rows))


@settings(deadline=None)
@given(layout=layouts())
def test_copies_are_replicated_norms_and_the_tied_head(layout):
    arch, tp, pp, rows = layout
    for place in places(tp, pp):
        for entry in rank_table(arch, place, rows):
            norm = entry.parameter.endswith("norm.weight")
            tied_head = entry.parameter == "output_layer.weight" and arch.tied_embeddings
            assert entry.owner == (not tied_head and (not norm or place.tp_rank == 0))


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


def test_tied_models_have_one_embedding_and_a_head_only_on_another_stage():
    arch = make_arch(tied_embeddings=True)
    assert "lm_head.weight" not in hf_shapes(arch)

    def heads(pp: int) -> list[Entry]:
        table = [entry for place in places(1, pp) for entry in rank_table(arch, place, 10)]
        return [entry for entry in table if entry.parameter == "output_layer.weight"]

    assert heads(1) == []
    (copy,) = heads(2)
    assert copy.pieces[0].hf_name == "model.embed_tokens.weight" and not copy.owner


def test_parameters_count_layers_from_zero_in_every_stage():
    arch = make_arch(num_layers=4)
    layers = [
        Counter(e.parameter.split(".")[2] for e in rank_table(arch, place, 10) if "layers" in e.parameter)
        for place in places(1, 2)
    ]
    assert layers[0] == layers[1] == {"0": 8, "1": 8}


def test_it_prints_readably():
    table = rank_table(make_arch(), Place(1, 2, 0, 1), 8)
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
