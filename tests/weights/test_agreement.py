"""What goes wrong on one rank is raised on all."""

import pytest
import torch.distributed as dist

from megatron_srpo.errors import EngineError, WeightError
from megatron_srpo.weights.agreement import together
from tests.ranks import RankFailure, run_ranks


def act(rank: int, world: int, said: list[str | None]) -> str:
    """Fail with this rank's text, if it has one; then prove that all ranks are still in step."""

    def action() -> int:
        text = said[rank]
        if text is not None:
            raise WeightError(text)
        return rank

    try:
        outcome = f"returned {together(action)}"
    except EngineError as error:
        outcome = f"raised {error}"
    dist.barrier()
    return outcome


@pytest.mark.parametrize(
    ("said", "outcomes"),
    [
        ([None, None], ["returned 0", "returned 1"]),
        (["broken", None], ["raised broken"] * 2),
        ([None, "broken"], ["raised broken"] * 2),
        (["broken", "lost"], ["raised broken; lost"] * 2),
        (["lost", "lost"], ["raised lost"] * 2),
        (["lost"], ["raised lost"]),
        ([None], ["returned 0"]),
    ],
)
def test_all_ranks_hear_what_one_met(said: list[str | None], outcomes: list[str]) -> None:
    assert run_ranks(len(said), act, said) == outcomes


def defect(rank: int, world: int) -> None:
    together(lambda: 1 // 0)


def test_a_defect_of_the_program_is_not_taken_for_a_users_error() -> None:
    with pytest.raises(RankFailure, match="ZeroDivisionError"):
        run_ranks(1, defect)
