"""Hugging Face folder <-> Megatron distributed checkpoint, on the ranks of one replica or more."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_srpo import platform
from megatron_srpo.errors import WeightError
from megatron_srpo.model.architecture import Qwen3Architecture
from megatron_srpo.model.build import build_policy
from megatron_srpo.model.forward import full_logits
from megatron_srpo.model.packing import pack_tokens
from megatron_srpo.model.parallel import ProcessGroups
from megatron_srpo.weights.export import DEFAULT_FILE_BYTES, save_hf
from megatron_srpo.weights.hf_files import open_hf
from megatron_srpo.weights.load import load_hf
from megatron_srpo.weights.megatron_checkpoint import (
    check_architecture,
    load_megatron,
    save_megatron,
    stored_dtype,
)
from megatron_srpo.weights.table import hf_shapes

# Called with the name of a phase and how far it is: (phase, done, total).
PhaseProgress = Callable[[str, int, int], None]

# Largest accepted difference of fp32 logits, relative to the largest logit (or to 1).
LOGIT_TOLERANCE = 1e-4


def no_progress(phase: str, done: int, total: int) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank: its shard of the weights, and the rise of its peak memory since the start."""

    shard: int
    rise: int


def import_hf(
    source: Path, target: Path, groups: ProcessGroups, progress: PhaseProgress = no_progress
) -> Memory:
    """Turn a Hugging Face folder into a Megatron checkpoint of the same type. A collective over all ranks.

    Raises:
        ModelError, ConfigError: the model or the layout is not supported.
        WeightError: names the tensor or file that is wrong.
        CheckpointError: the target exists or cannot be written.
    """
    before = platform.peak_memory_bytes()
    arch = Qwen3Architecture.from_hf_folder(source)
    dtype = open_hf(arch, source).common_dtype(hf_shapes(arch))
    model = build_policy(arch, groups, dtype)
    load_hf(model, arch, source, groups, lambda done, total: progress("reading", done, total))
    progress("writing", 0, 1)
    save_megatron(model, arch, groups, target, source)
    progress("writing", 1, 1)
    return _memory(model, before)


def export_hf(
    source: Path,
    target: Path,
    groups: ProcessGroups,
    hf_files: Path | None = None,
    max_file_bytes: int = DEFAULT_FILE_BYTES,
    progress: PhaseProgress = no_progress,
) -> Memory:
    """Turn a Megatron checkpoint into a Hugging Face folder of the same type. A collective over all ranks.

    Args:
        hf_files: where ``config.json`` and the tokenizer are; the checkpoint itself by default.

    Raises:
        ModelError, ConfigError: the model or the layout is not supported.
        CheckpointError: the source is damaged, or the target exists or cannot be written.
    """
    before = platform.peak_memory_bytes()
    arch = Qwen3Architecture.from_hf_folder(hf_files or source)
    check_architecture(source, arch)
    model = build_policy(arch, groups, stored_dtype(source))
    progress("reading", 0, 1)
    load_megatron(model, source)
    progress("reading", 1, 1)
    save_hf(
        model,
        arch,
        groups,
        target,
        hf_files or source,
        max_file_bytes=max_file_bytes,
        progress=lambda done, total: progress("writing", done, total),
    )
    return _memory(model, before)


def _memory(model: torch.nn.Module, before: int) -> Memory:
    shard = sum(parameter.nbytes for parameter in model.parameters())
    return Memory(shard, platform.peak_memory_bytes() - before)


def verify(checkpoint: Path, hf_folder: Path, groups: ProcessGroups) -> float:
    """Compare fp32 logits of a Megatron checkpoint with transformers on an HF folder. A collective.

    One rank of the last stage loads the whole model with transformers.

    Returns:
        The largest absolute difference, relative to the largest logit (or to 1).

    Raises:
        WeightError: it exceeds :data:`LOGIT_TOLERANCE`.
    """
    arch = Qwen3Architecture.from_hf_folder(hf_folder)
    generator = torch.Generator().manual_seed(0)
    sequences = [
        torch.randint(arch.vocab_size, (length,), generator=generator).tolist() for length in (48, 1, 17)
    ]
    model = _load_fp32(checkpoint, arch, groups)
    logits_TV = full_logits(model, groups, pack_tokens(sequences), arch.vocab_size)
    difference = torch.zeros(1, device=platform.device())
    if logits_TV is not None and groups.tp_rank == 0:
        expected_TV = transformers_logits(hf_folder, sequences).to(logits_TV.device)
        scale = expected_TV.abs().max().clamp(min=1.0)
        difference[0] = (logits_TV - expected_TV).abs().max() / scale
    dist.all_reduce(difference, op=dist.ReduceOp.MAX)
    worst = float(difference)
    if not worst <= LOGIT_TOLERANCE:
        raise WeightError(
            f"logits of {checkpoint} and {hf_folder} differ by {worst:.2e} of the largest; "
            f"at most {LOGIT_TOLERANCE:.0e} is rounding. The two do not hold the same model"
        )
    return worst


def _load_fp32(checkpoint: Path, arch: Qwen3Architecture, groups: ProcessGroups) -> torch.nn.Module:
    model = build_policy(arch, groups, stored_dtype(checkpoint))
    load_megatron(model, checkpoint)
    wide = build_policy(arch, groups, torch.float32).eval()
    with torch.no_grad():
        for parameter, value in zip(wide.parameters(), model.parameters(), strict=True):
            parameter.copy_(value)
    return wide


@torch.no_grad()
def transformers_logits(folder: Path, sequences: list[list[int]]) -> torch.Tensor:
    """Return transformers' fp32 logits of every sequence run alone, concatenated: [T, vocabulary]."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return torch.cat([model(torch.tensor([sequence])).logits[0] for sequence in sequences])
