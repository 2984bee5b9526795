"""Which copy of the model gives a server its weights: real ranks, whose machines are told apart by name."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_srpo.rollout.sglang.endpoint import Endpoint
from megatron_srpo.rollout.sglang.owners import _deal
from tests.ranks import run_ranks

#: A server's host, by the machine that it is on; two ranks share a machine.
URLS = [f"http://machine{number}:1" for number in (1, 0, 1, 0, 2)]


def owners(rank: int, world: int, tensor: int, urls: Sequence[str]) -> tuple[list[int], bool]:
    from megatron_srpo.model.parallel import initialize_parallel
    from megatron_srpo.rollout.sglang import owners as module

    groups = initialize_parallel(tensor, 1)
    endpoints = [Endpoint(url) for url in urls]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "on_this_host", lambda url: url.startswith(f"http://machine{rank // 2}:"))
        return module.server_owners(endpoints, groups), module.all_have_a_copy_near(endpoints, groups)


def test_a_server_is_served_from_its_own_machine() -> None:
    """Ranks 0 and 1 (copies 0 and 1) are on machine 0, the others on machine 1; machine 2 has no rank."""
    assert run_ranks(4, owners, 1, URLS) == [([2, 0, 3, 1, 0], False)] * 4
    assert run_ranks(4, owners, 1, URLS[:4]) == [([2, 0, 3, 1], True)] * 4


def test_a_copy_of_two_ranks_is_on_a_machine_or_not() -> None:
    assert run_ranks(4, owners, 2, URLS[:4]) == [([1, 0, 1, 0], True)] * 4
    assert run_ranks(4, owners, 4, URLS[:2]) == [([0, 0], False)] * 4


@given(st.lists(st.sets(st.integers(0, 3)), max_size=12))
def test_nobody_near_means_in_turn_and_near_means_near(near: list[set[int]]) -> None:
    dealt = _deal([sorted(choice) for choice in near], 4)
    assert all(owner in choice for owner, choice in zip(dealt, near, strict=True) if choice)
    everywhere = _deal([[]] * len(near), 4)
    assert everywhere == [place % 4 for place in range(len(near))]
