"""From where servers can be reached."""

import pytest

from megatron_srpo.errors import ConfigError
from megatron_srpo.rollout.sglang.endpoint import check_reach, is_loopback


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
