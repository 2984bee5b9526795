"""The two training runs of an iteration: their configurations, and the weights that they begin with."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from megatron_srpo.config.run import RunConfig
from megatron_srpo.config.self_play import SelfPlayConfig
from megatron_srpo.report.records import write_whole
from megatron_srpo.rollout.seeds import request_seed
from megatron_srpo.selfplay.folders import CHALLENGER, IterationFolder
from megatron_srpo.selfplay.questions import prompt_source
from megatron_srpo.training.checkpoint import finished_checkpoints

#: Seeds of runs stay within what every random generator takes.
_SEEDS = 2**31
#: Least reward of a question that pays.
_PAYS = 1e-6


def base_run(config: SelfPlayConfig, role: str) -> RunConfig:
    """Return the training configuration of a role as the user wrote it."""
    return config.challenger if role == CHALLENGER else config.solver


def latest_model(config: SelfPlayConfig, role: str, before: int) -> Path:
    """Return the model folder with a role's weights at the beginning of iteration ``before``."""
    run = _latest_run(config, role, before)
    return Path(base_run(config, role).model.path) if run is None else run / "model"


def _latest_run(config: SelfPlayConfig, role: str, before: int) -> Path | None:
    """Return the folder of a role's last finished run; a Solver may have been left out of iterations."""
    root = Path(config.output_dir)
    runs = (IterationFolder(root, number).run(role) for number in range(before - 1, 0, -1))
    return next((run for run in runs if (run / "model").is_dir()), None)


def training_run(config: SelfPlayConfig, role: str, folder: IterationFolder) -> RunConfig:
    """Return the whole configuration of one of an iteration's runs.

    It begins with the role's own weights at the end of the iteration before, in the precision that its
    optimizer kept them in; its reference, where there is a KL penalty, is that beginning.
    """
    base = base_run(config, role)
    run = _latest_run(config, role, folder.number)
    checkpoints = [] if run is None else finished_checkpoints(run / "checkpoints")
    seed = request_seed(config.seed, role, folder.number, 0, 0) % _SEEDS
    first = folder.number == 1
    algorithm = base.algorithm
    if role == CHALLENGER:
        # No question is right or wrong: metrics and warnings count those that pay.
        algorithm = dataclasses.replace(algorithm, success_threshold=_PAYS)
    return dataclasses.replace(
        base,
        output_dir=str(folder.run(role)),
        seed=seed,
        algorithm=algorithm,
        model=dataclasses.replace(base.model, path=str(latest_model(config, role, folder.number))),
        data=dataclasses.replace(base.data, train=(prompt_source(config.prompt, role, folder),), seed=seed),
        training=dataclasses.replace(
            base.training, initial_checkpoint=str(checkpoints[-1][1]) if checkpoints else None
        ),
        checkpoint=dataclasses.replace(base.checkpoint, at_end=True, export_hf=True),
        # What the run before has measured at its end holds at the beginning of this one.
        evaluation=dataclasses.replace(base.evaluation, before=base.evaluation.before and first),
    )


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON-lines file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(row) + "\n" for row in rows))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read what :func:`write_rows` wrote."""
    with path.open(encoding="ascii") as file:
        return [json.loads(line) for line in file]
