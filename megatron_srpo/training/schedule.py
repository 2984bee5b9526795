"""Micro-batches through Megatron-Core's pipeline schedule, with hidden states handed to our functions.

Shape suffixes: R response tokens of a micro-batch, H hidden size.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from megatron_srpo.model.chunks import config_of
from megatron_srpo.model.forward import run_schedule
from megatron_srpo.model.graphs import drop_kept_graphs
from megatron_srpo.model.head import head_weight
from megatron_srpo.model.megatron_core import gather_from_sequence_parallel_region
from megatron_srpo.training.microbatches import MicroBatch

Collect = Callable[[Tensor, MicroBatch], Tensor]
"""Maps (hidden_RH, micro-batch) to what a forward-only pass keeps of it."""

Loss = Callable[[Tensor, MicroBatch], tuple[Tensor, Tensor]]
"""Maps (hidden_RH, micro-batch) to (loss, vector of sums to report)."""


@torch.no_grad()
def forward(model: torch.nn.Module, batches: Sequence[MicroBatch], collect: Collect) -> list[Tensor]:
    """Run a forward pass; return ``collect``'s results in order on the last stage, nothing elsewhere.

    Idle micro-batches have no result.
    """

    def finish(output: Tensor, batch: MicroBatch, **_: Any) -> Tensor | None:
        return None if batch.idle else collect(_response_rows(model, output, batch), batch)

    training = model.training
    # Layers would prepare to be computed again in a backward pass, and Transformer Engine would take what it
    # kept for this one in the next.
    model.eval()
    try:
        return _run(model, batches, finish, forward_only=True)
    finally:
        model.train(training)


def forward_backward(model: torch.nn.Module, batches: Sequence[MicroBatch], loss: Loss) -> list[Tensor]:
    """Accumulate the gradient of the sum of ``loss`` over micro-batches and reduce it over replicas.

    ``loss`` must already be divided by the whole optimizer step's denominator. Returns the vectors of sums
    on the last stage, nothing elsewhere.
    """

    def finish(output: Tensor, batch: MicroBatch, **_: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        if batch.idle:
            value, sums = _no_loss(model, output), None
        else:
            value, sums = loss(_response_rows(model, output, batch), batch)
        # Megatron-Core wants a token count; our finalize function (optimizer.py) does not divide by it.
        return value, torch.ones((), dtype=torch.int, device=value.device), sums

    results = _run(model, batches, finish, forward_only=False)
    drop_kept_graphs(model)
    return results


def _no_loss(model: torch.nn.Module, output: Tensor) -> Tensor:
    """Return a loss of 0 with a gradient for every weight, the head's too: DDP waits for the last one's."""
    return output.sum() * 0.0 + head_weight(model).flatten()[0] * 0.0


def _response_rows(model: torch.nn.Module, output: Tensor, batch: MicroBatch) -> Tensor:
    """Select the hidden states of predictors, from all tensor-parallel ranks' tokens.

    The loss gives every tensor-parallel rank the whole gradient, so each keeps its own tokens' (no sum).
    """
    rows_TH = output.squeeze(0)
    if config_of(model).sequence_parallel:
        rows_TH = gather_from_sequence_parallel_region(rows_TH, tensor_parallel_output_grad=False)
    return rows_TH.index_select(0, batch.predictor_R)


def _run(
    model: torch.nn.Module, batches: Sequence[MicroBatch], finish: Callable[..., Any], forward_only: bool
) -> list[Tensor]:
    if not batches:
        return []

    def step(iterator: Iterator[MicroBatch], stage: torch.nn.Module) -> tuple[Tensor, Callable[..., Any]]:
        batch = next(iterator)
        packed = batch.packed
        output = stage(
            packed.tokens_1T, packed.position_ids_1T, None, packed_seq_params=packed.packed_seq_params
        )
        return output, lambda result, **options: finish(result, batch, **options)

    longest = max(batch.packed.tokens_1T.size(1) for batch in batches)
    results = run_schedule(
        model, step, batches, longest, forward_only=forward_only, collect_non_loss_data=forward_only
    )
    return [result for result in results if result is not None]
