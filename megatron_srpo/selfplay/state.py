"""How far a self-play is: one small file, replaced whole when a phase is done."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from megatron_srpo.errors import DataError
from megatron_srpo.report.records import write_whole

#: Of one iteration, in order.
PHASES = ("challenger", "questions", "votes", "memory", "solver", "summary")

STATE = "state.json"


@dataclass(frozen=True)
class State:
    """The phase to do next.

    Attributes:
        iteration: from 1; one more than there are when all is done.
        seconds: of this iteration's finished phases. A phase that was interrupted counts from its last start.
    """

    iteration: int = 1
    phase: str = PHASES[0]
    seconds: dict[str, float] = field(default_factory=dict)

    def after(self, seconds: float) -> "State":
        """Return the state when this phase is done, which took so long."""
        place = PHASES.index(self.phase) + 1
        if place == len(PHASES):
            return State(self.iteration + 1)
        return State(self.iteration, PHASES[place], {**self.seconds, self.phase: seconds})


def read_state(folder: Path) -> State:
    """Return the state of a self-play; the first one where there is none yet.

    Raises:
        DataError: the file is damaged.
    """
    path = folder / STATE
    if not path.exists():
        return State()
    try:
        state = State(**json.loads(path.read_text(encoding="utf-8")))
        PHASES.index(state.phase)
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}); remove it to begin with iteration 1 again") from error
    return state


def write_state(folder: Path, state: State) -> None:
    """Replace the state."""
    write_whole(folder / STATE, [json.dumps(dataclasses.asdict(state)), "\n"])
