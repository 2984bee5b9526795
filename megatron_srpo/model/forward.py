"""Megatron-Core's pipeline schedule, and one forward pass through all stages without a loss."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch

from megatron_srpo.model.chunks import chunks_of
from megatron_srpo.model.head import head_weight
from megatron_srpo.model.megatron_core import get_forward_backward_func, tensor_parallel
from megatron_srpo.model.packing import PackedTokens
from megatron_srpo.model.parallel import ProcessGroups

# What Megatron-Core's schedule asks of a loss function: loss, number of tokens, values to keep.
Loss = tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]


Batch = TypeVar("Batch")
Step = Callable[[Iterator[Batch], torch.nn.Module], tuple[torch.Tensor, Callable[..., Any]]]
"""Takes the next batch through (a chunk of) the model; returns its output and what to do with the last."""


def run_schedule(
    model: torch.nn.Module, step: Step[Batch], batches: Sequence[Batch], longest: int, **options: Any
) -> list[Any]:
    """Run ``step`` once per micro-batch and chunk of the model, in the order of the pipeline's schedule.

    Args:
        batches: of an interleaved stage, a multiple of the number of stages.
        longest: most tokens of a micro-batch: only an initial value, as lengths travel with the activations.
        options: of Megatron-Core's schedule.
    """
    chunks = chunks_of(model)
    several = len(chunks) > 1
    return get_forward_backward_func()(
        forward_step_func=step,
        data_iterator=[iter(batches) for _ in chunks] if several else iter(batches),
        model=chunks if several else chunks[0],
        num_microbatches=len(batches),
        seq_length=longest,
        micro_batch_size=1,
        **options,
    )


def _no_loss(output: torch.Tensor) -> Loss:
    return output.sum(), torch.ones((), dtype=torch.int, device=output.device), {}


@torch.no_grad()
def last_hidden_states(
    model: torch.nn.Module, groups: ProcessGroups, batch: PackedTokens
) -> torch.Tensor | None:
    """Return the last hidden states [T, H] on the last stage, ``None`` elsewhere; all stages must call it."""
    found: list[torch.Tensor] = []

    def forward_step(
        iterator: Iterator[PackedTokens], stage: torch.nn.Module
    ) -> tuple[torch.Tensor, Callable[[torch.Tensor], Loss]]:
        packed = next(iterator)
        output = stage(
            packed.tokens_1T, packed.position_ids_1T, None, packed_seq_params=packed.packed_seq_params
        )
        if stage.post_process:
            found.append(output[0])
        return output, _no_loss

    count = groups.pp_size if groups.stages.interleaved else 1
    run_schedule(model, forward_step, [batch] * count, batch.tokens_1T.size(1), forward_only=True)
    return found[0] if found else None


@torch.no_grad()
def full_logits(
    model: torch.nn.Module, groups: ProcessGroups, batch: PackedTokens, vocab_size: int
) -> torch.Tensor | None:
    """Return the logits [T, vocabulary] of a short batch on every rank of the last stage, ``None`` elsewhere.

    For checks only: this is the one place that holds a full vocabulary of logits.
    """
    hidden_TH = last_hidden_states(model, groups, batch)
    if hidden_TH is None:
        return None
    logits_TV = hidden_TH @ head_weight(model).T
    gathered = tensor_parallel.gather_from_tensor_model_parallel_region(logits_TV)
    return gathered[:, :vocab_size]
