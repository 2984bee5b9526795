"""The two training runs of an iteration: their configurations, and the weights that they begin with."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from megatron_srpo.config.data import SourceConfig
from megatron_srpo.config.run import RunConfig
from megatron_srpo.config.self_play import SelfPlayConfig
from megatron_srpo.rollout.seeds import request_seed
from megatron_srpo.selfplay.folders import CHALLENGER, IterationFolder
from megatron_srpo.selfplay.questions import SOLVER_TASK, UNSCORED
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
    for folder in _earlier(config, before):
        model = folder.run(role) / "model"
        if model.is_dir():
            return model
    return Path(base_run(config, role).model.path)


def _latest_checkpoint(config: SelfPlayConfig, role: str, before: int) -> Path | None:
    for folder in _earlier(config, before):
        if (folder.run(role) / "model").is_dir():
            found = finished_checkpoints(folder.run(role) / "checkpoints")
            return found[-1][1] if found else None
    return None


def _earlier(config: SelfPlayConfig, before: int) -> Iterable[IterationFolder]:
    return (IterationFolder(Path(config.output_dir), number) for number in range(before - 1, 0, -1))


def training_run(config: SelfPlayConfig, role: str, folder: IterationFolder) -> RunConfig:
    """Return the whole configuration of one of an iteration's runs.

    It begins with the role's own weights at the end of the iteration before, in the precision that its
    optimizer kept them in; its reference, where there is a KL penalty, is that beginning.
    """
    base = base_run(config, role)
    checkpoint = _latest_checkpoint(config, role, folder.number)
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
        data=dataclasses.replace(base.data, train=(_source(config, role, folder),), seed=seed),
        training=dataclasses.replace(
            base.training, initial_checkpoint=None if checkpoint is None else str(checkpoint)
        ),
        checkpoint=dataclasses.replace(base.checkpoint, at_end=True, export_hf=True),
        # What the run before has measured at its end holds at the beginning of this one.
        evaluation=dataclasses.replace(base.evaluation, before=base.evaluation.before and first),
    )


def _source(config: SelfPlayConfig, role: str, folder: IterationFolder) -> SourceConfig:
    prompt = config.prompt
    writes = role == CHALLENGER
    return SourceConfig(
        kind="jsonl",
        name="self_play",
        path=str(folder.prompts(role)),
        task=UNSCORED if writes else SOLVER_TASK,
        system=prompt.challenger_system if writes else prompt.solver_system,
        prompt_suffix="" if writes else prompt.solver_suffix,
        answer_column=None if writes else "answer",
        id_column="id",
    )


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON-lines file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.partial")
    with draft.open("w", encoding="ascii") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    draft.replace(path)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read what :func:`write_rows` wrote."""
    with path.open(encoding="ascii") as file:
        return [json.loads(line) for line in file]
