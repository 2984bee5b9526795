"""Which runs belong together, what to call them, and which settings tell them apart."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_srpo.report.curves import Groups
from megatron_srpo.report.run_data import RunData, flatten

# Settings that may differ between the seeds of one experiment, and those that change nothing of training.
_SEEDS = ("seed", "data.seed")
_NO_MATTER = ("output_dir", "report.", "checkpoint.")
_LABEL_LENGTH = 48


def group_runs(runs: Sequence[RunData]) -> Groups:
    """Group runs whose settings differ by nothing but seeds; labelled by what tells the groups apart.

    A run without a readable configuration is a group by itself.
    """
    found: dict[str, list[RunData]] = {}
    for run in runs:
        key = (
            json.dumps(_settings(run), sort_keys=True, default=str) if run.config else str(run.path.resolve())
        )
        found.setdefault(key, []).append(run)
    groups = list(found.values())
    return dict(zip(_labels(groups), groups, strict=True))


def differing_settings(groups: Groups) -> dict[str, list[str]]:
    """Return, by dotted key, each group's value of the settings in which groups differ; "-" where unset."""
    columns = [_settings(runs[0]) for runs in groups.values()]
    keys = sorted({key for column in columns for key in column})
    rows = {key: [_text(column, key) for column in columns] for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def _settings(run: RunData) -> dict[str, Any]:
    """Return what may tell runs apart; a setting unknown to another version is like one left unset (null).

    The two training runs within a self-play's config are looked at like runs.
    """
    return {
        key: value
        for key, value in flatten(run.config).items()
        if value is not None and not _may_differ(key.removeprefix("challenger.").removeprefix("solver."))
    }


def _may_differ(key: str) -> bool:
    return key in _SEEDS or key.startswith(_NO_MATTER)


def _text(settings: Mapping[str, Any], key: str) -> str:
    return str(settings.get(key, "-"))


def _labels(groups: Sequence[Sequence[RunData]]) -> list[str]:
    """Name groups by their algorithm, else by the settings that differ, else by their first run's folder."""
    algorithms = [str(flatten(runs[0].config).get("algorithm.name", runs[0].name)) for runs in groups]
    differing = differing_settings({str(index): runs for index, runs in enumerate(groups)})
    settings = [
        ", ".join(f"{key.split('.')[-1]} {values[index]}" for key, values in differing.items())
        for index in range(len(groups))
    ]
    folders = [runs[0].name for runs in groups]
    for labels in (algorithms, settings, folders):
        if len(set(labels)) == len(groups) and all(0 < len(label) <= _LABEL_LENGTH for label in labels):
            return labels
    return [f"{index + 1}: {folder}"[:_LABEL_LENGTH] for index, folder in enumerate(folders)]
