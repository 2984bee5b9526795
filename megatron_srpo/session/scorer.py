"""What scores a step's responses: the verifiers, or whatever an embedding program puts in their place."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from megatron_srpo.data.chat import ChatTokenizer
from megatron_srpo.model.parallel import ProcessGroups
from megatron_srpo.rewards.pool import RewardPool
from megatron_srpo.rewards.types import Score
from megatron_srpo.session.control import Control
from megatron_srpo.session.rollouts import Rollout
from megatron_srpo.training.exchange import on_leader


class Scorer(Protocol):
    """Scores responses. Every call is a collective over the job."""

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Return a score per rollout of this replica, in order; see :meth:`RewardPool.score`.

        Raises:
            StopRequested: on all ranks; nothing of the run has changed.
        """
        ...

    def metrics(self) -> dict[str, float]:
        """Return what the scores since the last call were made of, for the step's row; equal on all ranks."""
        ...


class Verifiers:
    """A :class:`Scorer`: each replica's leader runs the verifiers that the prompts name."""

    def __init__(self, rewards: RewardPool, groups: ProcessGroups) -> None:
        self._rewards, self._groups = rewards, groups

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Score responses one by one."""
        items = [(rollout.prompt, rollout.text) for rollout in rollouts]
        return on_leader(lambda: self._rewards.score(items), self._groups)

    def metrics(self) -> dict[str, float]:
        """Nothing: a verifier's score has no parts."""
        return {}


@dataclass(frozen=True)
class ScorerParts:
    """What a scorer may use of the run that it belongs to."""

    groups: ProcessGroups
    tokenizer: ChatTokenizer
    control: Control
    rewards: RewardPool
    say: Callable[[str], None]


@dataclass(frozen=True)
class Embedding:
    """What a program that embeds a run changes of it.

    Attributes:
        open_scorer: makes what scores responses in place of the verifiers.
        responses: folder in which sampled responses are kept, so that a resumed step need not sample again.
        stop_folders: further folders whose ``stop`` file asks the run to stop.
    """

    open_scorer: Callable[[ScorerParts], AbstractContextManager[Scorer]] | None = None
    responses: Path | None = None
    stop_folders: tuple[Path, ...] = ()


#: A run that nothing surrounds.
NOT_EMBEDDED = Embedding()
