"""External servers: reached and used, never started or ended."""

from pathlib import Path

from megatron_srpo.errors import EngineError
from megatron_srpo.rollout.sglang.endpoint import Endpoint
from megatron_srpo.rollout.sglang.process import fetch

_REACH_TIMEOUT_S = 30.0


def read_api_key(path: str) -> str | None:
    """Read the key of external servers; None for no file.

    Raises:
        EngineError: the file cannot be read or is empty.
    """
    if not path:
        return None
    try:
        key = Path(path).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise EngineError(f"sglang.api_key_file = {path!r} cannot be read: {error}") from error
    if not key:
        raise EngineError(f"sglang.api_key_file = {path!r} is empty; write the servers' key into it")
    return key


def reach(endpoint: Endpoint) -> None:
    """Make sure that an external server answers and accepts the key.

    Raises:
        EngineError: it does not; the message names its URL.
    """
    reply = fetch(endpoint, "/model_info", _REACH_TIMEOUT_S)
    if isinstance(reply, OSError):
        raise EngineError(
            f"sglang.urls: {endpoint.url} is not reached ({reply}); start that server or correct the URL"
        )
    if reply.status in (401, 403):
        given = (
            "the key given in sglang.api_key_file" if endpoint.api_key else "no key; set sglang.api_key_file"
        )
        raise EngineError(f"sglang.urls: {endpoint.url} refuses {given} (status {reply.status})")
    if reply.status != 200 or not isinstance(reply.json(), dict):
        text = reply.body[:200].decode(errors="replace")
        raise EngineError(
            f"sglang.urls: {endpoint.url} answers /model_info with status {reply.status}: {text!r}; "
            "is it an SGLang server?"
        )
