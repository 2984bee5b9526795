"""Process groups."""

from typing import Any

import torch.distributed as dist

from megatron_srpo.errors import ConfigError
from tests.ranks import run_ranks


def groups_of(rank: int, world: int, tp: int, pp: int, expert: int = 1) -> dict[str, Any]:
    from megatron_srpo.model.parallel import initialize_parallel

    groups = initialize_parallel(tp, pp, expert=expert)
    members = {name: sorted(dist.get_process_group_ranks(getattr(groups, name))) for name in _GROUPS}
    places = (groups.tp_rank, groups.pp_rank, groups.dp_rank)
    sizes = (groups.tp_size, groups.pp_size, groups.dp_size)
    flags = (groups.is_first_stage, groups.is_last_stage, groups.is_leader)
    copies = (groups.copy_index, groups.copies)
    return {"members": members, "places": places, "sizes": sizes, "flags": flags, "copies": copies}


_GROUPS = ("tp", "pp", "dp", "replica", "ep", "stage", "copy")


def test_tensor_by_pipeline():
    results = run_ranks(4, groups_of, 2, 2)
    assert [r["members"]["tp"] for r in results] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert [r["members"]["pp"] for r in results] == [[0, 2], [1, 3], [0, 2], [1, 3]]
    assert all(r["members"]["replica"] == [0, 1, 2, 3] for r in results)
    assert [r["places"] for r in results] == [(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0)]
    assert all(r["sizes"] == (2, 2, 1) for r in results)
    assert [r["flags"] for r in results] == [
        (True, False, True),
        (True, False, False),
        (False, True, False),
        (False, True, False),
    ]


def test_the_rest_of_the_world_is_data_parallel():
    results = run_ranks(4, groups_of, 2, 1)
    assert [r["members"]["dp"] for r in results] == [[0, 2], [1, 3], [0, 2], [1, 3]]
    assert [r["members"]["replica"] for r in results] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert [r["places"][2] for r in results] == [0, 0, 1, 1]
    assert [r["flags"] for r in results] == [(True, True, True), (True, True, False)] * 2


def test_experts_over_the_ranks_of_several_replicas():
    results = run_ranks(4, groups_of, 1, 1, 2)
    assert [r["members"]["replica"] for r in results] == [[0], [1], [2], [3]]
    pairs = [[0, 1], [0, 1], [2, 3], [2, 3]]
    for name in ("ep", "stage", "copy"):
        assert [r["members"][name] for r in results] == pairs
    assert [r["copies"] for r in results] == [(0, 2), (0, 2), (1, 2), (1, 2)]


def test_experts_over_replicas_with_stages():
    results = run_ranks(4, groups_of, 1, 2, 2)
    assert [r["members"]["replica"] for r in results] == [[0, 2], [1, 3], [0, 2], [1, 3]]
    assert [r["members"]["stage"] for r in results] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert all(r["members"]["copy"] == [0, 1, 2, 3] and r["copies"] == (0, 1) for r in results)


def test_experts_within_a_replica():
    results = run_ranks(4, groups_of, 2, 1, 2)
    for name in ("tp", "ep", "stage", "copy", "replica"):
        assert [r["members"][name] for r in results] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert [r["copies"] for r in results] == [(0, 2), (0, 2), (1, 2), (1, 2)]


def refuses(rank: int, world: int, expert: int) -> str:
    from megatron_srpo.model.parallel import initialize_parallel

    try:
        initialize_parallel(2, 1, expert=expert)
    except ConfigError as error:
        return str(error)
    return "accepted"


def test_a_world_that_replicas_do_not_fill_is_refused():
    (message,) = run_ranks(1, refuses, 1)
    assert "1 ranks cannot hold replicas" in message and "multiple of 2 ranks" in message
    message, _ = run_ranks(2, refuses, 4)
    assert "expert parallel 4; start a multiple of 4 ranks" in message
