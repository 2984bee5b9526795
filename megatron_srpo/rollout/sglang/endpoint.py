"""Where one SGLang server listens."""

import socket
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Endpoint:
    """Address of a server, or of the router in front of several.

    Attributes:
        url: scheme, host and port without a path, e.g. ``http://127.0.0.1:31000``.
        tensor_parallel: ranks that hold the server's weights.
        api_key: sent as a bearer token; never printed.
    """

    url: str
    tensor_parallel: int = 1
    api_key: str | None = field(default=None, repr=False)


def on_this_host(url: str) -> bool:
    """Say whether the server at ``url`` runs on this machine: its name leads to a loopback or own address."""
    host = urlsplit(url).hostname or ""
    try:
        theirs = {info[4][0] for info in socket.getaddrinfo(host, None)}
        ours = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None)}
    except OSError:
        return False
    return bool(theirs & (ours | {"127.0.0.1", "::1"}))
