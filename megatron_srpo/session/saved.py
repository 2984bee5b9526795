"""The folder of an evaluation: its settings, every response as it came, and at the end the results.

``responses.jsonl`` has one line per response; ``blocks.jsonl`` says which blocks of prompts are whole. A kill
leaves at most a block without its line there; its responses are dropped and sampled again.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_srpo.config.loader import to_tree
from megatron_srpo.config.run import RunConfig
from megatron_srpo.data.types import Prompt
from megatron_srpo.errors import ConfigError, DataError
from megatron_srpo.evaluation.rows import SampleRow
from megatron_srpo.report.records import RecordFile, read_records, write_whole
from megatron_srpo.session.preflight import differences

SETTINGS, RESPONSES, BLOCKS, RESULTS = (
    "settings.json",
    "responses.jsonl",
    "blocks.jsonl",
    "evaluation.json",
)
#: What decides the responses and their scores; the rest of a configuration trains, shows or places.
_DECIDING = ("seed", "evaluation", "reward")
_DECIDING_DATA = ("eval", "thinking", "max_prompt_tokens", "overlong_prompts")
_DECIDING_ROLLOUT = ("engine", "max_response_tokens", "local_dtype")
#: Of the evaluation section: when it is done during training.
_TIMES = ("every", "before", "after")


def settings_of(config: RunConfig, model: Mapping[str, Any], prompts: Sequence[Prompt]) -> dict[str, Any]:
    """Return what makes two evaluations the same: model, prompts, sampling and scoring.

    Args:
        model: what is known of the weights.
    """
    tree = to_tree(config)
    for name in _TIMES:
        tree["evaluation"].pop(name)
    return {
        "model": dict(model) | {"dtype": tree["model"]["dtype"]},
        **{name: tree[name] for name in _DECIDING},
        "data": {name: tree["data"][name] for name in _DECIDING_DATA},
        "rollout": {name: tree["rollout"][name] for name in _DECIDING_ROLLOUT},
        "prompts_sha256": _prompts_sha256(prompts),
    }


def _prompts_sha256(prompts: Sequence[Prompt]) -> str:
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(json.dumps([prompt.id, prompt.messages, prompt.answer, prompt.task]).encode())
    return digest.hexdigest()


def settings_digest(settings: Mapping[str, Any]) -> str:
    """Return a few characters that tell settings apart, for the name of a folder."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


@dataclass
class SavedResponses:
    """What has been sampled and scored so far.

    Attributes:
        finished: seconds of every whole block, by its number.
        rows: of finished blocks, block by block.
    """

    folder: Path
    finished: dict[int, float]
    rows: dict[int, list[SampleRow]]
    _responses: RecordFile
    _blocks: RecordFile

    @classmethod
    def open(cls, folder: Path, settings: Mapping[str, Any]) -> "SavedResponses":
        """Begin an evaluation in a folder, or take up the one that it holds.

        Raises:
            ConfigError: it holds one of other settings; names the key.
            DataError: its files are damaged.
        """
        _check_settings(folder, settings)
        responses = RecordFile(folder / RESPONSES)
        blocks = RecordFile(folder / BLOCKS, one_per_step=True)
        responses.rewind(-1 if blocks.last_step is None else blocks.last_step)
        finished = {int(record["step"]): float(record["seconds"]) for record in read_records(blocks.path)}
        rows: dict[int, list[SampleRow]] = {number: [] for number in finished}
        for record in read_records(responses.path):
            number = int(record.pop("step"))
            rows[number].append(_row(record, responses.path))
        return cls(folder, finished, rows, responses, blocks)

    def append(self, number: int, rows: Sequence[SampleRow], seconds: float) -> None:
        """Save a block; numbers rise."""
        self._responses.append([{"step": number, **asdict(row)} for row in rows])
        self._blocks.append([{"step": number, "seconds": seconds, "responses": len(rows)}])
        self.finished[number], self.rows[number] = seconds, list(rows)

    @property
    def all_rows(self) -> list[SampleRow]:
        """The responses of all finished blocks, in order."""
        return [row for number in sorted(self.rows) for row in self.rows[number]]

    @property
    def seconds(self) -> float:
        """Wall clock of sampling and scoring, over all attempts."""
        return sum(self.finished.values())


def _row(record: dict[str, Any], path: Path) -> SampleRow:
    try:
        return SampleRow(**record)
    except TypeError as error:
        raise DataError(f"{path} was written by another version ({error}); choose another --out") from error


def _check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    path = folder / SETTINGS
    plain = json.loads(json.dumps(settings))
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, plain)
        return
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}); choose another --out, or remove the folder") from error
    for key, ours, theirs in differences(plain, stored):
        raise ConfigError(
            f"{key} = {ours!r}, but {folder} holds an evaluation with {theirs!r}; choose another --out"
        )


def write_json(path: Path, tree: Mapping[str, Any]) -> None:
    """Write a file whole or not at all."""
    write_whole(path, [json.dumps(tree, ensure_ascii=False, indent=1), "\n"])
