"""Where one SGLang server listens."""

import ipaddress
import socket
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import psutil

from megatron_srpo.errors import ConfigError, EngineError


@dataclass(frozen=True)
class Endpoint:
    """Address of a server, or of the router in front of several.

    Attributes:
        url: scheme, host and port without a path, e.g. ``http://127.0.0.1:31000``.
        tensor_parallel: ranks that hold the server's weights.
        api_key: sent as a bearer token; never printed.
        incarnation: which start of a registered server this is; "" for others.
    """

    url: str
    tensor_parallel: int = 1
    api_key: str | None = field(default=None, repr=False)
    incarnation: str = ""


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
    except OSError:
        return False
    ours = {address.address for addresses in psutil.net_if_addrs().values() for address in addresses}
    return bool(theirs & (ours | {"127.0.0.1", "::1"}))


def own_address() -> str:
    """Return the address by which other machines most likely reach this one; IPv4 where there is one.

    First what this machine's name leads to, then the address from which packets leave it, then that of any
    interface. Loopback does not count: Debian writes 127.0.1.1 beside a machine's name.

    Raises:
        EngineError: it has none but loopback.
    """
    for address in _candidates():
        if _is_reachable_form(address) and can_listen(address):
            return address
    raise EngineError("this machine has no address but loopback; give one that others reach with --host")


def _candidates() -> Iterator[str]:
    with suppress(OSError):
        named = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)
        yield from sorted((str(info[4][0]) for info in named), key=lambda address: ":" in address)
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # An address of no machine (RFC 5737). Nothing is sent: this only chooses the way.
        probe.connect(("192.0.2.1", 9))
        yield str(probe.getsockname()[0])
    known = [known for interface in psutil.net_if_addrs().values() for known in interface]
    for family in (socket.AF_INET, socket.AF_INET6):
        yield from (str(address.address) for address in known if address.family == family)


def _is_reachable_form(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return not (parsed.is_loopback or parsed.is_link_local or parsed.is_unspecified)


def can_listen(address: str) -> bool:
    """Say whether an address is this machine's own, so that servers can listen there.

    A machine's name may lead to a gateway in front of it.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((address, 0))
        return True
    return False
