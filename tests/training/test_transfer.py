"""Values of rollouts that travel between replicas and back."""

import torch

from megatron_srpo.training.transfer import Transfer
from tests.ranks import run_ranks
from tests.training.harness import Layout

ROWS = [[3, 0, 2], [1, 4, 1]]


def value(replica: int, index: int) -> torch.Tensor:
    """Tells where it comes from: replica, rollout, row."""
    rows = ROWS[replica][index]
    return torch.stack(
        [torch.full((rows,), replica), torch.full((rows,), index), torch.arange(rows)], 1
    ).float()


def travel(rank: int, world: int, tp: int, places: list[int]) -> tuple[list, dict, bool]:
    """Send every value there; there, add 10 to it; and back."""
    groups = Layout(tp=tp).initialize()
    transfer = Transfer.of(places, [3, 3], groups)
    own = groups.dp_rank
    there = transfer.there([value(own, index) for index in range(3)], ROWS)
    back = transfer.back([tensor + 10 for tensor in there], ROWS, torch.empty(0, 3))
    return there, back, transfer.still


def check(places: list[int], tp: int = 1) -> list[tuple[list, dict, bool]]:
    results = run_ranks(2 * tp, travel, tp, places)
    for rank, (there, back, _) in enumerate(results):
        replica = rank // tp
        expected = [value(index // 3, index % 3) for index, place in enumerate(places) if place == replica]
        assert len(there) == len(expected)
        assert all(torch.equal(one, other) for one, other in zip(there, expected, strict=True))
        computed = [index for index in range(3) if places[3 * replica + index] >= 0]
        assert sorted(back) == computed
        assert all(torch.equal(back[index], value(replica, index) + 10) for index in computed)
    return results


def test_values_go_and_come_back() -> None:
    results = check([0, 1, 1, 0, 1, -1])
    assert [still for _, _, still in results] == [False, False]


def test_every_rank_of_a_replica_gets_the_same() -> None:
    check([1, 1, 0, 1, 0, 0], tp=2)


def test_a_replica_may_get_nothing_and_send_nothing() -> None:
    results = check([0, 0, 0, 0, 0, 0])
    assert results[1][0] == [] and len(results[0][0]) == 6
    check([-1, -1, -1, 0, 0, -1])


def test_what_stays_is_not_exchanged() -> None:
    assert [still for _, _, still in check([0, -1, 0, 1, 1, 1])] == [True, True]
