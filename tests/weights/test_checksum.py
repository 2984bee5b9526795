"""Checksums are those of the installed SGLang, and differences are named."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_srpo.weights.checksum import _word_sums, describe_difference, engine_checksum
from tests.weights.sglang_facts import HASHED, facts, hashed_tensor


@pytest.mark.parametrize("place", range(len(HASHED)))
def test_on_cpu_it_is_what_sglang_computes(place):
    assert engine_checksum(hashed_tensor(place)) == facts()["hashes"][place]


def mixed(words: np.ndarray, finalise) -> int:
    """The CUDA hash once more, word by word with unsigned integers (gpu_tensor_hash.py of SGLang)."""
    mask, tile = 0xFFFFFFFF, 8192
    seeds = (0x243F6A88, (0x243F6A88 * 0x9E3779B1 ^ 0xDEADBEEF) & mask)
    total = 0
    for start in range(0, len(words), tile):
        sums = [0, 0]
        for index, word in enumerate(words[start : start + tile].tolist(), start):
            for half, (factor, turn) in enumerate(((0x27D4EB2D, 15), (0x165667B1, 13))):
                rotated = (index << turn | index >> (32 - turn)) & mask
                sums[half] += finalise(word ^ (((index * factor + seeds[half]) & mask) ^ rotated))
        high, low = (finalise((part ^ len(words) * 4) & mask) for part in sums)
        total += (high << 32) + low
    total &= (1 << 64) - 1
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        total = (total ^ total >> shift) * factor & ((1 << 64) - 1)
    return total ^ total >> 31


def murmur(word: int) -> int:
    word &= 0xFFFFFFFF
    word = (word ^ word >> 16) * 0x85EBCA6B & 0xFFFFFFFF
    word = (word ^ word >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
    return word ^ word >> 16


@pytest.mark.parametrize("size", [1, 2, 5, 8192, 8193, 20000])
def test_on_cuda_it_is_the_sum_over_tiles(size):
    """Computed here on CPU tensors; tests/gpu compares it with the kernel itself."""
    tensor = torch.randn(size, generator=torch.Generator().manual_seed(size))
    assert _word_sums(tensor) == mixed(tensor.numpy().view(np.uint32), murmur)


def test_on_cuda_an_odd_number_of_half_words_is_padded():
    tensor = torch.randn(5).bfloat16()
    padded = torch.cat([tensor, tensor.new_zeros(1)])
    assert _word_sums(tensor) == _word_sums(padded)
    assert _word_sums(torch.empty(0)) == 0


@given(st.integers(0, 11), st.floats(width=32, allow_nan=False))
def test_any_changed_element_changes_it(place, value):
    tensor = torch.arange(12.0).view(3, 4)
    changed = tensor.clone()
    changed.view(-1)[place] = value
    # Bits, not values: 0.0 and -0.0 are equal and differ.
    same = torch.equal(tensor.view(torch.int32), changed.view(torch.int32))
    assert (engine_checksum(tensor) == engine_checksum(changed)) == same
    assert (_word_sums(tensor) == _word_sums(changed)) == same


def test_swapped_elements_change_it():
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0])
    assert engine_checksum(a) != engine_checksum(b)
    assert _word_sums(a) != _word_sums(b)


def test_equal_ranks_have_no_difference():
    assert describe_difference({"a": "1"}, {"a": "1"}) is None


def test_differences_are_named_by_kind():
    expected = {"a": "1", "b": "2", "c": "3"} | {f"n{i}": "0" for i in range(6)}
    held = {"a": "x", "b": "2", "d": "4"}
    text = describe_difference(expected, held)
    assert text is not None
    assert text.startswith("1 differ (a); 7 are missing (c, n0, n1, n2, …); 1 were never sent (d)")
