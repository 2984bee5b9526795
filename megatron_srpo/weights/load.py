"""Filling this rank's shard from a Hugging Face folder, reading only the slices that it holds."""

from collections.abc import Callable
from pathlib import Path

import torch

from megatron_srpo.errors import WeightError
from megatron_srpo.model.architecture import Qwen3Architecture
from megatron_srpo.model.chunks import named_parameters, vocab_rows_of
from megatron_srpo.model.parallel import ProcessGroups
from megatron_srpo.weights.hf_files import HfFolder, open_hf
from megatron_srpo.weights.table import HF_EMBEDDING, HF_HEAD, Entry, Place, rank_table


def place_of(groups: ProcessGroups) -> Place:
    """Return this rank's position among those that hold one copy of the model."""
    return Place(groups.stage.rank(), groups.tp_size, groups.pp_rank, groups.stages, groups.ep_size)


def model_table(
    model: torch.nn.Module, arch: Qwen3Architecture, groups: ProcessGroups
) -> list[tuple[Entry, torch.nn.Parameter]]:
    """Pair every entry of this rank's table with the model's parameter.

    Raises:
        WeightError: the model and the table disagree (the model was built for another architecture).
    """
    parameters = named_parameters(model)
    entries = rank_table(arch, place_of(groups), vocab_rows_of(model) // groups.tp_size)
    if parameters.keys() != {entry.parameter for entry in entries}:
        difference = sorted(parameters.keys() ^ {entry.parameter for entry in entries})
        raise WeightError(f"model and weight table disagree about the parameters {', '.join(difference)}")
    for entry in entries:
        shape = tuple(parameters[entry.parameter].shape)
        if shape != entry.shape:
            raise WeightError(f"{entry.parameter} has shape {shape} in the model, {entry.shape} in the table")
    return [(entry, parameters[entry.parameter]) for entry in entries]


@torch.no_grad()
def load_hf(
    model: torch.nn.Module,
    arch: Qwen3Architecture,
    folder: str | Path,
    groups: ProcessGroups,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Fill this rank's shard of ``model`` from a Hugging Face folder. Not a collective.

    Values are converted to the model's type. Rows of vocabulary padding become 0.

    Args:
        progress: called with (parameters done, parameters in all).

    Raises:
        WeightError: names the tensor or file that is wrong.
    """
    stored = open_hf(arch, folder)
    table = model_table(model, arch, groups)
    for done, (entry, parameter) in enumerate(table, start=1):
        _fill(parameter, entry, stored)
        if arch.tied_embeddings and HF_HEAD in stored.tensors:
            _check_tied_head(entry, stored)
        if progress is not None:
            progress(done, len(table))


def _fill(parameter: torch.nn.Parameter, entry: Entry, stored: HfFolder) -> None:
    if sum(piece.target.size for piece in entry.pieces) < parameter.numel():
        parameter.zero_()  # vocabulary padding
    with stored.reader() as reader:
        for piece in entry.pieces:
            parameter[piece.target.slices].copy_(reader.read(piece.hf_name, piece.source))


def _check_tied_head(entry: Entry, stored: HfFolder) -> None:
    for piece in entry.pieces:
        if piece.hf_name != HF_EMBEDDING:
            return
        with stored.reader() as reader:
            if not torch.equal(reader.read(HF_HEAD, piece.source), reader.read(HF_EMBEDDING, piece.source)):
                raise WeightError(
                    f"{HF_HEAD} in {stored.tensors[HF_HEAD].file} differs from {HF_EMBEDDING}, but "
                    "config.json says tie_word_embeddings = true; set it to false, or remove the tensor"
                )
