"""The state on disk."""

from pathlib import Path

import pytest

from megatron_srpo.errors import DataError
from megatron_srpo.selfplay.state import PHASES, STATE, State, read_state, write_state


def test_phases_follow_each_other_and_then_the_next_iteration(tmp_path: Path) -> None:
    state = read_state(tmp_path)
    assert state == State(1, "challenger", {})
    seen = []
    for _ in range(len(PHASES)):
        seen.append(state.phase)
        write_state(tmp_path, state.after(2.0))
        state = read_state(tmp_path)
    assert tuple(seen) == PHASES
    assert state == State(2, "challenger", {})


def test_seconds_are_kept_until_the_iteration_ends(tmp_path: Path) -> None:
    write_state(tmp_path, State().after(1.5).after(2.5))
    assert read_state(tmp_path).seconds == {"challenger": 1.5, "questions": 2.5}


@pytest.mark.parametrize("text", ["", "{", '{"iteration": 1, "phase": "lunch"}', '{"wrong": 1}', "[]"])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / STATE).write_text(text)
    with pytest.raises(DataError, match=STATE):
        read_state(tmp_path)
