"""Where one SGLang server listens."""

import ipaddress
import socket
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from megatron_srpo.errors import ConfigError


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


def is_loopback(host: str) -> bool:
    """Say whether a name or address means whatever machine uses it."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def check_reach(hosts: Collection[str], addresses: Sequence[str]) -> None:
    """Refuse servers on loopback where ranks run on several machines: each would look for them at home.

    Args:
        hosts: names of the machines that ranks run on.
        addresses: on which servers listen, or their URLs.

    Raises:
        ConfigError: names the machines and the remedy.
    """
    names = [urlsplit(address).hostname or "" if "://" in address else address for address in addresses]
    at_home = sorted({name for name in names if is_loopback(name)})
    if len(set(hosts)) > 1 and at_home:
        raise ConfigError(
            f"SGLang servers at {', '.join(at_home)} are reached from their own machine only, and ranks run "
            f"on {', '.join(sorted(set(hosts)))}; start servers beside the run and name them in "
            "rollout.sglang.urls, or set rollout.sglang.host to an address that all of these reach"
        )


def on_this_host(url: str) -> bool:
    """Say whether the server at ``url`` runs on this machine: its name leads to a loopback or own address."""
    host = urlsplit(url).hostname or ""
    try:
        theirs = {info[4][0] for info in socket.getaddrinfo(host, None)}
        ours = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None)}
    except OSError:
        return False
    return bool(theirs & (ours | {"127.0.0.1", "::1"}))
