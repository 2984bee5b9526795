"""Writes the report of a self-play: diversity.json, nearest.jsonl and report.html in its folder."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_srpo.config.loader import read_yaml
from megatron_srpo.errors import ConfigError, UserError
from megatron_srpo.report.records import write_whole
from megatron_srpo.report.run_data import CONFIG_FILE
from megatron_srpo.report.self_play import write_self_play_page
from megatron_srpo.report.self_play_data import (
    DIVERSITY_FILE,
    ITERATIONS_FILE,
    NEAREST_FILE,
    finite,
    is_self_play,
    read_rows,
)
from megatron_srpo.selfplay.asked import read_pools, text_repeats, valid_entries
from megatron_srpo.selfplay.diversity import Diversity, Limits, measure_diversity
from megatron_srpo.selfplay.folders import MEMORY
from megatron_srpo.selfplay.memory import MemoryBank
from megatron_srpo.selfplay.spread import Vectors
from megatron_srpo.selfplay.types import Remembered
from megatron_srpo.selfplay.verdicts import local_illusion, surface_illusion


def write_self_play_report(folder: str | Path) -> Path:
    """Measure the questions anew and write the page; return its path.

    Works at any moment of a self-play. Where the questions cannot be measured, the page says why.

    Raises:
        DataError: the folder does not exist, or is not that of a self-play.
    """
    notes: tuple[str, ...] = ()
    try:
        if is_self_play(folder):
            write_diversity(folder)
    except UserError as error:
        notes = (f"The questions were not measured anew: {error}",)
    return write_self_play_page(folder, notes)


def write_diversity(folder: str | Path) -> Path:
    """Write diversity.json and nearest.jsonl from the files of a self-play; return the path of the former.

    Raises:
        UserError: a package of the extra ``self-play`` is missing, or the memory bank is damaged.
    """
    path = Path(folder)
    config = _config(path)
    pools, notes = read_pools(path)
    entries, vectors_ND = _remembered(path) or (valid_entries(pools), None)
    found = measure_diversity(entries, vectors_ND, _limits(config))
    for number, repeats in text_repeats(pools).items():
        found.rows.setdefault(number, {}).update(repeats)
    tree = {**found.tree(), "verdicts": _verdicts(path, config, found), "notes": notes}
    write_whole(path / NEAREST_FILE, (json.dumps(row) + "\n" for row in found.near))
    write_whole(path / DIVERSITY_FILE, (json.dumps(tree, indent=1), "\n"))
    return path / DIVERSITY_FILE


def _remembered(folder: Path) -> tuple[list[Remembered], Vectors] | None:
    """Return everything in the memory bank; None where there is none."""
    if not (folder / MEMORY).is_dir():
        return None
    memory = MemoryBank.read(folder / MEMORY).everything()
    return memory.entries, memory.vectors


def _verdicts(folder: Path, config: Mapping[str, Any], found: Diversity) -> list[dict[str, str]]:
    rows, _ = read_rows(folder / ITERATIONS_FILE)
    penalties = ((row.get("iteration"), finite(row.get("challenger/repetition"))) for row in rows)
    penalty = {number: value for number, value in penalties if type(number) is int and value is not None}
    measured_by = str(_reward(config).get("repetition", ""))
    if measured_by == "off":  # its zeros say nothing about the batches
        penalty = {}
    alike = {number: int(count) for number, count in found.curve("pairs/alike").items()}
    verdicts = (
        local_illusion(
            found.curve("recurrence/near"), found.curve("recurrence/overlap"), penalty, measured_by
        ),
        surface_illusion(found.curve("pairs/far_of_one_skill"), alike),
    )
    return [dataclasses.asdict(verdict) for verdict in verdicts]


def _config(folder: Path) -> dict[str, Any]:
    try:
        return read_yaml(folder / CONFIG_FILE)
    except ConfigError:  # the page says so
        return {}


def _reward(config: Mapping[str, Any]) -> Mapping[str, Any]:
    reward = config.get("reward")
    return reward if isinstance(reward, Mapping) else {}


def _limits(config: Mapping[str, Any]) -> Limits:
    """Take the threshold of the clusters from the run's reward, where its config says it."""
    distance = finite(_reward(config).get("cluster_distance"))
    return Limits() if distance is None else Limits(cluster_distance=distance)
