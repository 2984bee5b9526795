"""Small builders shared by the tests of data and rewards."""

import json
from pathlib import Path
from typing import Any

from megatron_srpo.data.types import Prompt


def prompt(question: str = "1+1?", answer: str | None = "2", task: str = "exact", **fields: Any) -> Prompt:
    messages = fields.pop("messages", ({"role": "user", "content": question},))
    return Prompt(
        id=fields.pop("id", "set/0"),
        messages=messages,
        answer=answer,
        task=task,
        metadata=fields.pop("metadata", {}),
        source=fields.pop("source", "set"),
    )


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    """Write rows; text is written as it stands, so that broken lines can be made."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
