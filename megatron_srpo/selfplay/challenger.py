"""The Challenger's reward for a batch of questions, as the training loop's scorer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch.distributed as dist

from megatron_srpo import platform
from megatron_srpo.config.self_play import SelfPlayConfig
from megatron_srpo.model.parallel import ProcessGroups
from megatron_srpo.rewards.types import Score
from megatron_srpo.selfplay.blocks import on_first_rank_patiently
from megatron_srpo.selfplay.memory import MemoryBank
from megatron_srpo.selfplay.questions import Written, parse_question
from megatron_srpo.selfplay.reward_terms import RewardTerms, challenger_rewards
from megatron_srpo.selfplay.types import SkillMeasure
from megatron_srpo.selfplay.votes import VoteBook
from megatron_srpo.session.control import Control
from megatron_srpo.session.rollouts import Rollout
from megatron_srpo.training.exchange import gather_over_replicas


@dataclass(frozen=True)
class Judges:
    """What a reward is made from; on the first rank.

    Attributes:
        votes: of the frozen Solver.
        skills: None where skills are not measured.
        memory: valid questions; None likewise.
        iteration: the running one; only earlier ones' questions count.
        rest: called after a batch: releases what the trainer needs.
    """

    votes: VoteBook
    skills: SkillMeasure | None
    memory: MemoryBank | None
    iteration: int
    rest: Callable[[], None]


class ChallengerScorer:
    """A :class:`~megatron_srpo.session.scorer.Scorer`: the batch of all replicas is scored as one.

    Args:
        judges: on the first rank; None elsewhere.
    """

    def __init__(
        self, config: SelfPlayConfig, judges: Judges | None, groups: ProcessGroups, control: Control
    ) -> None:
        self._config, self._judges = config, judges
        self._groups, self._control = groups, control
        self._metrics: dict[str, float] = {}

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Score the questions of a step; see the protocol."""
        texts = gather_over_replicas([rollout.text for rollout in rollouts], self._groups)
        everything = [text for part in texts for text in part]
        platform.give_back_memory()  # the Solver's servers may share this rank's device
        rewards, self._metrics = on_first_rank_patiently(lambda: self._judge(everything), self._control)
        begin = sum(len(part) for part in texts[: self._groups.dp_rank])
        return [Score(value) for value in rewards[begin : begin + len(rollouts)]]

    def metrics(self) -> dict[str, float]:
        """Return the means of the reward's terms over the last batch."""
        return self._metrics

    def _judge(self, texts: Sequence[str]) -> tuple[list[float], dict[str, float]]:
        judges = self._judges
        assert judges is not None and dist.get_rank() == 0
        written = [parse_question(text, self._config.prompt) for text in texts]
        try:
            terms = self._terms(written, judges)
        finally:
            judges.rest()
        return terms.reward.tolist(), term_means(terms, written)

    def _terms(self, written: Sequence[Written | None], judges: Judges) -> RewardTerms:
        questions = [None if one is None else one.question for one in written]
        verdicts = judges.votes.verdicts_where_written(written)
        shares = [None if verdict is None else verdict.share for verdict in verdicts]
        vectors = None
        if judges.skills is not None and self._wants_skills(judges):
            vectors = np.zeros((len(questions), judges.skills.dimension), np.float32)
            asked = {place: question for place, question in enumerate(questions) if question is not None}
            for place, skill in zip(asked, judges.skills.measure(list(asked.values())), strict=True):
                vectors[place] = skill.vector_D
        return challenger_rewards(
            self._config.reward, questions, shares, vectors, judges.memory, judges.iteration
        )

    def _wants_skills(self, judges: Judges) -> bool:
        reward = self._config.reward
        remembered = judges.memory is not None and len(judges.memory.before(judges.iteration)) > 0
        return reward.repetition == "skill" or (reward.memory and remembered)


def term_means(terms: RewardTerms, written: Sequence[Written | None]) -> dict[str, float]:
    """Return the means over well-formed questions, and the share of malformed ones."""
    well = np.array([one is not None for one in written])
    named = {
        "reward": terms.reward,
        "uncertainty": terms.uncertainty,
        "repetition": terms.repetition,
        "memory": terms.memory,
    }
    means = {f"challenger/{name}": float(values[well].mean()) for name, values in named.items() if well.any()}
    return {**means, "challenger/malformed": 1.0 - float(well.mean())}
