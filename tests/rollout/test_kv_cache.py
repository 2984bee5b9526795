"""The cache layer and the attention function against transformers' own."""

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from megatron_srpo.rollout import kv_cache
from megatron_srpo.rollout.kv_cache import BufferedLayer, grouped_attention

HEADS, WIDTH = 2, 8


def columns(rows: int, count: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, HEADS, count, WIDTH, generator=torch.Generator().manual_seed(seed))


def filled(rows: int, first: torch.Tensor) -> BufferedLayer:
    layer = BufferedLayer(rows, first.shape[2], first)
    layer.keys[:] = first
    layer.values[:] = -first
    return layer


def test_starts_with_zeros() -> None:
    layer = BufferedLayer(3, 5, columns(1, 4, 0))
    assert layer.keys.shape == (3, HEADS, 5, WIDTH)
    assert not layer.keys.any()
    assert not layer.values.any()
    assert layer.get_seq_length() == 5


def test_appending_equals_concatenation_across_growth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache, "GROWTH", 3)
    expected = columns(4, 2, 0)
    layer = filled(4, expected)
    for step in range(1, 9):
        new = columns(4, 1, step)
        expected = torch.cat([expected, new], dim=2)
        keys, values = layer.update(new, -new)
        assert torch.equal(keys, expected)
        assert torch.equal(values, -expected)
        assert layer.get_mask_sizes(1) == (expected.shape[2] + 1, 0)


def test_a_long_append_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache, "GROWTH", 1)
    first, new = columns(1, 2, 0), columns(1, 10, 1)
    keys, _ = filled(1, first).update(new, new)
    assert torch.equal(keys, torch.cat([first, new], dim=2))


def test_dropping_rows_frees_them_and_keeps_the_rest() -> None:
    first = columns(5, 3, 0)
    layer = filled(5, first)
    layer.batch_select_indices(torch.tensor([0, 3]))
    assert torch.equal(layer.keys, first[[0, 3]])
    assert torch.equal(layer.values, -first[[0, 3]])
    new = columns(2, 1, 1)
    assert torch.equal(layer.update(new, new)[0], torch.cat([first[[0, 3]], new], dim=2))


@pytest.mark.parametrize("new", [1, 6])
@pytest.mark.parametrize("masked", [True, False])
def test_grouped_attention_equals_transformers(new: int, masked: bool) -> None:
    module = torch.nn.Module()
    module.num_key_value_groups, module.is_causal = 3, True
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(4, HEADS * 3, new, WIDTH, generator=generator)
    key, value = columns(4, 6, 1), columns(4, 6, 2)
    mask = torch.zeros(4, 1, new, 6)
    mask[1, :, :, 2:4] = float("-inf")
    options = {"attention_mask": mask if masked else None, "scaling": 0.3}
    found, weights = grouped_attention(module, query, key, value, **options)
    expected, _ = sdpa_attention_forward(module, query, key, value, **options)
    assert weights is None
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-6  # same sums of 6 products of order 1, other order
