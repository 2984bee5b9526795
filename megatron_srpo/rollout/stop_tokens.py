"""Which token ids end a response."""

import json
from pathlib import Path
from typing import Any

from megatron_srpo.errors import EngineError

_FILES = ("generation_config.json", "config.json")


def stop_tokens(folder: str | Path, tokenizer: Any) -> tuple[int, ...]:
    """Return every end-of-sequence id that a model folder names, the same for all engines.

    An id may stand in the generation config, the config or the tokenizer, and published models name different
    ones in them. SGLang stops at all of them, so the other engines do, too.

    Args:
        tokenizer: the folder's tokenizer.

    Raises:
        EngineError: none is named, so that no response could end; or a file is not JSON.
    """
    found: set[int] = set()
    for name in _FILES:
        path = Path(folder) / name
        if path.is_file():
            found |= _ids(path)
    if tokenizer.eos_token_id is not None:
        found.add(tokenizer.eos_token_id)
    if not found:
        raise EngineError(
            f"{folder} names no end-of-sequence token; add eos_token_id to its generation_config.json"
        )
    return tuple(sorted(found))


def _ids(path: Path) -> set[int]:
    try:
        value = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    except (ValueError, AttributeError) as error:
        raise EngineError(f"{path} is not a JSON object ({error}); download it again") from error
    if value is None:
        return set()
    return set(value) if isinstance(value, list) else {value}
