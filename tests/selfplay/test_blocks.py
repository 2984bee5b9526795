"""Blocks that are there whole or not at all."""

from pathlib import Path

import pytest

from megatron_srpo.errors import EngineError
from megatron_srpo.selfplay.blocks import Blocks, Paused, on_first_rank_patiently
from megatron_srpo.session.stop import StopRequested
from tests.ranks import run_ranks


def test_a_file_cut_at_any_byte_loses_at_most_its_last_block(tmp_path: Path) -> None:
    path = tmp_path / "blocks.jsonl"
    blocks = Blocks(path)
    for number in range(3):
        blocks.append([{"n": number}, {"n": number + 10}])
    whole = path.read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        again = Blocks(path)
        kept = sum(end <= cut for end in ends)
        # A last line without its line feed is whole all the same.
        assert len(again.saved) in (kept, kept + (cut + 1 in ends))
        again.append([{"n": 99}])
        assert Blocks(path).items[-1] == {"n": 99}
        assert [item["n"] for item in Blocks(path).items[:-1]] == [0, 10, 1, 11, 2, 12][
            : 2 * len(again.saved) - 2
        ]


class Asked:
    """A Control that was asked to stop."""

    def heed(self) -> None:
        raise StopRequested("SIGUSR1")

    def pending(self) -> bool:
        return True


def try_all(rank: int, world: int) -> list[str]:
    found = []

    def fail() -> None:
        raise EngineError("no server")

    def pause() -> None:
        raise Paused

    for action in (lambda: rank + 40, fail, pause):
        try:
            found.append(str(on_first_rank_patiently(action, Asked())))  # type: ignore[arg-type]
        except (EngineError, StopRequested) as error:
            found.append(f"{type(error).__name__}: {error}")
    return found


@pytest.mark.parametrize("world", [1, 2])
def test_all_ranks_learn_what_the_first_one_found(world: int) -> None:
    for found in run_ranks(world, try_all):
        assert found == ["40", "EngineError: no server", "StopRequested: stopped on request (SIGUSR1)"]
