"""A rank's part of the model: one ``GPTModel``, or several where its pipeline stage is cut into chunks.

A chunk may be wrapped in Megatron-Core's DDP. What works on parameters alone needs none of this: modules with
several chunks are modules.
"""

from collections.abc import Iterable
from typing import Any

import torch

from megatron_srpo.model.megatron_core import DistributedDataParallel, GPTModel, TransformerConfig


class ModelChunks(torch.nn.ModuleList):
    """The chunks of an interleaved pipeline stage, in the order of their layers."""


def chunks_of(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Return what Megatron-Core's schedule runs, wrapped or not."""
    return list(model) if isinstance(model, ModelChunks) else [model]


def join_chunks(chunks: Iterable[torch.nn.Module]) -> torch.nn.Module:
    """Undo :func:`chunks_of`."""
    first, *others = chunks
    return ModelChunks([first, *others]) if others else first


def policies(model: torch.nn.Module) -> list[GPTModel]:
    """Return the ``GPTModel`` of every chunk, without Megatron-Core's wrapper."""
    return [_unwrap(chunk) for chunk in chunks_of(model)]


def _unwrap(model: torch.nn.Module) -> GPTModel:
    while isinstance(model, DistributedDataParallel):
        model = model.module
    assert isinstance(model, GPTModel)
    return model


def config_of(model: torch.nn.Module) -> TransformerConfig:
    """Return Megatron-Core's config of the model, which all chunks share."""
    return policies(model)[0].config


def vocab_rows_of(model: torch.nn.Module) -> int:
    """Return the rows of the vocabulary on all tensor-parallel ranks together, padding included."""
    return policies(model)[0].vocab_size


def named_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return the parameters by name: the chunk's number first where there are several."""
    chunks = policies(model)
    if len(chunks) == 1:
        return dict(chunks[0].named_parameters())
    return {
        f"{number}.{name}": parameter
        for number, chunk in enumerate(chunks)
        for name, parameter in chunk.named_parameters()
    }


def sharded_state(model: torch.nn.Module, metadata: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Describe the weights of every chunk to Megatron-Core's checkpoints, by chunk.

    Stored tensors are named by their place in the whole model, so that any layout can read them.
    """
    return {
        str(number): policy.sharded_state_dict(metadata=metadata)
        for number, policy in enumerate(policies(model))
    }


def sharded_parameters(model: torch.nn.Module, metadata: dict[str, Any]) -> dict[str, Any]:
    """Return the description of every parameter, under the names and in the order of ``named_parameters``."""
    described = [
        own[name]
        for own, chunk in zip(sharded_state(model, metadata).values(), policies(model), strict=True)
        for name, _ in chunk.named_parameters()
    ]
    return dict(zip(named_parameters(model), described, strict=True))
