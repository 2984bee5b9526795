"""How many tokens make a chunk, and what a fused loss takes of memory."""

import torch

from megatron_srpo.ops.head import STRIP_BYTES
from megatron_srpo.ops.rows import BLOCK_BYTES

#: Bytes of one chunk's logits. On a CPU, small beside everything else, yet enough rows for the matrix product
#: to run at its full rate; on a GPU, about a thousand tokens of a whole vocabulary.
CHUNK_BYTES = {"cpu": 128 << 20, "cuda": 640 << 20}
#: Whole tiles of a matrix product.
_GRAIN = 64
#: Copies of a chunk's logits that the top-k form takes for a moment, beside the two that it is given.
_TOP_K_COPIES = 4
#: Temporaries of one block of rows (:mod:`.rows`).
_BLOCKS = 8


def chunk_tokens(columns: int, dtype: torch.dtype, device: str, teacher: bool) -> int:
    """Return the number of tokens per chunk.

    Args:
        columns: of this rank, padding included: the same on all ranks, which must agree.
        dtype: of the logits (fp32, or float64).
        device: "cpu" or "cuda".
        teacher: two logits per token instead of one.
    """
    row = columns * dtype.itemsize * (2 if teacher else 1)
    fitting = CHUNK_BYTES.get(device, CHUNK_BYTES["cuda"]) // row
    return max(1, fitting // _GRAIN * _GRAIN or fitting)


def fused_linear_bytes(
    tokens: int,
    taught: int,
    hidden_size: int,
    columns: int,
    dtype: torch.dtype,
    device: str,
    *,
    top_k: bool = False,
    accumulated: bool = False,
    fp32_gemm: bool = False,
    chunk: int | None = None,
) -> int:
    """Predict the peak memory of ``fused_linear_loss`` with both gradients, beyond its arguments, in bytes.

    That is forward's. Backward frees the logits and then holds a second gradient of the head, in its type.

    Args:
        tokens: all of them; ``taught`` of these have a teacher.
        columns: of this rank, padding included.
        dtype: of the hidden states.
        top_k: whether the divergence is over the top entries.
        accumulated, fp32_gemm: whether the head has a ``main_grad_VH``, and multiplies in fp32.
        chunk: as given to the loss.
    """
    math = torch.float64 if dtype == torch.float64 else torch.float32
    step = chunk or chunk_tokens(columns, math, device, taught > 0)
    row = columns * math.itemsize
    student, teacher = min(step, max(tokens - taught, taught)), min(step, taught)
    logits = row * (student + teacher * (1 + (_TOP_K_COPIES if top_k else 0)))
    cast = 0
    if dtype != math and fp32_gemm:
        cast = columns * hidden_size * math.itemsize  # the head, once for each product
    elif dtype != math:
        cast = student * columns * dtype.itemsize + _cpu_casts(device, columns, hidden_size)
    gradients = tokens * hidden_size * dtype.itemsize
    if not accumulated:
        gradients += columns * hidden_size * math.itemsize
    blocks = _BLOCKS * min(max(BLOCK_BYTES.get(device, BLOCK_BYTES["cuda"]), row), row * student)
    return logits + cast + gradients + blocks


def _cpu_casts(device: str, columns: int, hidden_size: int) -> int:
    """A CPU multiplies bf16 from a copy of the head in another order, and accumulates strips in fp32."""
    if device != "cpu":
        return 0
    head = columns * hidden_size
    return 2 * head + min(STRIP_BYTES, 4 * head)
