"""The checksum that an SGLang server computes over each of its tensors, over what it should hold.

Source: SGLang 0.5.23, ``utils/weight_checker.py``, ``managers/mm_utils.py::tensor_hash`` (CPU: the first 8
bytes of SHA-256) and ``kernels/ops/memory/gpu_tensor_hash.py`` (CUDA: sums of mixed 32-bit words).
"""

import hashlib

import torch

_WORD = 0xFFFFFFFF
_LONG = (1 << 64) - 1
_FINALISERS = (0x85EBCA6B, 0xC2B2AE35)  # of MurmurHash3
_POSITIONS = (0x27D4EB2D, 0x165667B1)
_SEED = 0x243F6A88
_TILE_WORDS = 8192
# Tiles that are mixed together; bounds the memory of the mixing (int64 words, a few copies) to about 100 MB.
_TILES_AT_ONCE = 256


def engine_checksum(tensor: torch.Tensor) -> str:
    """Return 16 hexadecimal digits over the bytes of ``tensor``, as SGLang on the same kind of device."""
    value = _word_sums(tensor) if tensor.is_cuda else _sha256(tensor)
    return f"{value:016x}"


def _sha256(tensor: torch.Tensor) -> int:
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return int.from_bytes(hashlib.sha256(memoryview(data)).digest()[:8], "big")


def _word_sums(tensor: torch.Tensor) -> int:
    """Mix each 32-bit word with its position, sum over tiles of 8192 words, then over tiles, then mix.

    Written with int64 tensors, whose products wrap around as the kernel's unsigned ones do below 32 bits.
    """
    words = _as_words(tensor)
    count = words.numel()
    if count == 0:
        return 0
    step = _TILE_WORDS * _TILES_AT_ONCE
    total = sum(_tile_sum(words[start : start + step], start, count) for start in range(0, count, step))
    return _splitmix64(total & _LONG)


def _as_words(tensor: torch.Tensor) -> torch.Tensor:
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    padding = -data.numel() % 4
    if padding:
        data = torch.cat([data, data.new_zeros(padding)])
    return data.view(torch.int32)


def _tile_sum(words: torch.Tensor, start: int, count: int) -> int:
    """Sum the 64-bit hashes of the tiles of ``words``, whose first word has the index ``start``."""
    index = torch.arange(start, start + words.numel(), device=words.device)
    value = words.to(torch.int64) & _WORD
    seeds = (_SEED, (_SEED * 0x9E3779B1 ^ 0xDEADBEEF) & _WORD)
    halves = []
    for factor, seed, turn in zip(_POSITIONS, seeds, (15, 13), strict=True):
        position = (index * factor + seed & _WORD) ^ _rotate(index, turn)
        mixed = _finalise(value ^ position)
        padded = torch.nn.functional.pad(mixed, (0, -mixed.numel() % _TILE_WORDS))
        tiles = padded.view(-1, _TILE_WORDS).sum(dim=1) & _WORD
        halves.append(_finalise(tiles ^ (count * 4 & _WORD)))
    high, low = (half.sum().item() for half in halves)
    return (int(high) << 32) + int(low)


def _rotate(words: torch.Tensor, turn: int) -> torch.Tensor:
    return (words << turn | words >> (32 - turn)) & _WORD


def _finalise(words: torch.Tensor) -> torch.Tensor:
    """Apply the 32-bit finaliser of MurmurHash3 to words held in int64."""
    first, second = _FINALISERS
    words = words ^ words >> 16
    words = words * first & _WORD
    words = words ^ words >> 13
    words = words * second & _WORD
    return words ^ words >> 16


def _splitmix64(value: int) -> int:
    value ^= value >> 30
    value = value * 0xBF58476D1CE4E5B9 & _LONG
    value ^= value >> 27
    value = value * 0x94D049BB133111EB & _LONG
    return value ^ value >> 31


def describe_difference(expected: dict[str, str], held: dict[str, str]) -> str | None:
    """Say which tensors of an engine rank differ from what was sent; ``None`` when none does."""
    missing = sorted(expected.keys() - held.keys())
    extra = sorted(held.keys() - expected.keys())
    different = sorted(name for name in expected.keys() & held.keys() if expected[name] != held[name])
    parts = [
        f"{len(names)} {what} ({', '.join(names[:4])}{', …' if len(names) > 4 else ''})"
        for names, what in ((different, "differ"), (missing, "are missing"), (extra, "were never sent"))
        if names
    ]
    return "; ".join(parts) or None
