"""Filling this rank's shard from a Hugging Face folder, reading only the slices that it holds."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from megatron_srpo.errors import WeightError
from megatron_srpo.model.architecture import Qwen3Architecture
from megatron_srpo.model.chunks import named_parameters, vocab_rows_of
from megatron_srpo.model.fp8 import fill, is_fp8
from megatron_srpo.model.parallel import ProcessGroups
from megatron_srpo.weights.hf_files import HfFolder, open_hf
from megatron_srpo.weights.table import HF_EMBEDDING, HF_HEAD, Entry, Place, other_names, rank_table


def place_of(groups: ProcessGroups) -> Place:
    """Return this rank's position among those that hold one copy of the model."""
    return Place(groups.stage.rank(), groups.tp_size, groups.pp_rank, groups.stages, groups.ep_size)


def model_table(
    model: torch.nn.Module, arch: Qwen3Architecture, groups: ProcessGroups
) -> list[tuple[Entry, torch.nn.Parameter]]:
    """Pair every entry of this rank's table with the model's parameter.

    Entries are named after the local layers; the same weights of other layers are found by
    :func:`~megatron_srpo.weights.table.other_names`.

    Raises:
        WeightError: the model and the table disagree (the model was built for another architecture).
    """
    entries = rank_table(arch, place_of(groups), vocab_rows_of(model) // groups.tp_size)
    parameters = _by_table_name(named_parameters(model), entries)
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


def _by_table_name(
    parameters: dict[str, torch.nn.Parameter], entries: Iterable[Entry]
) -> dict[str, torch.nn.Parameter]:
    """Return the parameters under the names of the table; those that it does not know keep theirs."""
    known = {
        other: entry.parameter
        for entry in entries
        if entry.parameter not in parameters
        for other in other_names(entry.parameter)
    }
    return {known.get(name, name): parameter for name, parameter in parameters.items()}


def _fill(parameter: torch.nn.Parameter, entry: Entry, stored: HfFolder) -> None:
    values: torch.Tensor = parameter
    if is_fp8(parameter):  # it is rounded once, as a whole
        values = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)
    if sum(piece.target.size for piece in entry.pieces) < values.numel():
        values.zero_()  # vocabulary padding
    with stored.reader() as reader:
        for piece in entry.pieces:
            values[piece.target.slices].copy_(reader.read(piece.hf_name, piece.source))
    if values is not parameter:
        fill(parameter, values)


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
