"""What the installed SGLang computes, printed as JSON.

A process of its own: on a machine without CUDA, importing SGLang needs stand-ins for other packages that must
not leak into the tests.
"""

import json
import subprocess
import sys
from functools import cache
from typing import Any

import pytest
import torch

#: (shape, type) of the tensors that are hashed; ``facts()["hashes"]`` is in this order.
HASHED = [
    (shape, dtype) for shape in [(1,), (3, 5), (0,), (64, 33)] for dtype in (torch.float32, torch.bfloat16)
]


def hashed_tensor(place: int) -> torch.Tensor:
    """Return the same random tensor in every process; odd ones are not contiguous."""
    shape, dtype = HASHED[place]
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(place)).to(dtype)
    return tensor.t() if tensor.dim() == 2 and place % 2 else tensor


@cache
def facts() -> dict[str, Any]:
    """Return what SGLang says; the test is skipped where it is not installed."""
    import importlib.util

    if importlib.util.find_spec("sglang") is None:
        pytest.skip("needs SGLang (make install-sglang)")
    done = subprocess.run(
        [sys.executable, "-m", "tests.weights.sglang_facts"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    from megatron_srpo import platform

    platform.prepare_sglang()
    from sglang.srt.layers.vocab_parallel_embedding import DEFAULT_VOCAB_PADDING_SIZE, pad_vocab_size
    from sglang.srt.utils.weight_checker import _hash_tensor

    found = {
        "vocab_multiple": DEFAULT_VOCAB_PADDING_SIZE,
        "padded_130": pad_vocab_size(130),
        "hashes": [_hash_tensor(hashed_tensor(place)) for place in range(len(HASHED))],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
