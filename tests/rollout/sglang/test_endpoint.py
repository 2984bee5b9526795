"""From where servers can be reached."""

import socket
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from megatron_srpo.errors import ConfigError, EngineError
from megatron_srpo.rollout.sglang import endpoint as endpoints
from megatron_srpo.rollout.sglang.endpoint import can_listen, check_reach, is_loopback, own_address


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost"])
def test_loopback_is_whatever_machine_asks(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7", "node-1", "localhost.example"])
def test_other_addresses_are_a_machines_own(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("hosts", "addresses"),
    [
        (["a", "a"], ["127.0.0.1"]),
        (["a", "b"], ["192.0.2.7"]),
        (["a", "b"], ["http://192.0.2.7:30000", "http://node-1:30000"]),
        (["a"], ["http://localhost:30000"]),
    ],
)
def test_servers_that_all_ranks_reach(hosts: list[str], addresses: list[str]) -> None:
    check_reach(hosts, addresses)


@pytest.mark.parametrize(
    ("addresses", "named"),
    [
        (["127.0.0.1"], "127.0.0.1"),
        (["http://192.0.2.7:30000", "http://localhost:30000"], "localhost"),
        (["http://[::1]:30000"], "::1"),
    ],
)
def test_servers_that_only_their_own_machine_reaches(addresses: list[str], named: str) -> None:
    message = rf"servers at {named} are .* ranks run on a, b; .*rollout.sglang.urls"
    with pytest.raises(ConfigError, match=message):
        check_reach(["b", "a", "b"], addresses)


class TestOwnAddress:
    """The system's answers are replaced; the choice among them is ours."""

    @pytest.fixture
    def machine(self, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
        machine = SimpleNamespace(named=["127.0.1.1"], interfaces=["127.0.0.1"], own=set())

        def resolve(*given: Any, **settings: Any) -> list[Any]:
            return [(0, 0, 0, "", (address, 0)) for address in machine.named]

        def interfaces() -> dict[str, Any]:
            kind = {False: socket.AF_INET, True: socket.AF_INET6}
            return {a: [SimpleNamespace(family=kind[":" in a], address=a)] for a in machine.interfaces}

        def no_way(*given: Any) -> None:
            raise OSError("network is unreachable")

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        monkeypatch.setattr(psutil, "net_if_addrs", interfaces)
        monkeypatch.setattr(socket.socket, "connect", no_way)
        monkeypatch.setattr(endpoints, "can_listen", lambda address: address in machine.own)
        return machine

    def test_what_the_name_leads_to_ipv4_first(self, machine: SimpleNamespace) -> None:
        machine.named = ["2001:db8::1", "127.0.1.1", "10.1.2.3"]
        machine.own = {"2001:db8::1", "10.1.2.3"}
        assert own_address() == "10.1.2.3"
        machine.own = {"2001:db8::1"}
        assert own_address() == "2001:db8::1"

    def test_a_name_that_leads_home_only(self, machine: SimpleNamespace) -> None:
        """As Debian writes it into /etc/hosts."""
        machine.interfaces = ["127.0.0.1", "169.254.7.7", "fe80::1%eth0", "fe80::1", "10.1.2.3"]
        machine.own = set(machine.interfaces)
        assert own_address() == "10.1.2.3"

    def test_a_name_that_leads_to_another_machine(self, machine: SimpleNamespace) -> None:
        machine.named, machine.interfaces, machine.own = ["192.0.2.7"], ["10.1.2.3"], {"10.1.2.3"}
        assert own_address() == "10.1.2.3"

    def test_none(self, machine: SimpleNamespace) -> None:
        machine.own = {"127.0.1.1", "127.0.0.1"}
        with pytest.raises(EngineError, match=r"no address but loopback; give one .* with --host"):
            own_address()


def test_addresses_of_this_machine() -> None:
    assert can_listen("127.0.0.1") and not can_listen("192.0.2.7") and not can_listen("nowhere.invalid")
