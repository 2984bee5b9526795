"""The self-teacher: weights that follow the policy, and its pass over the rollouts routed to it.

Shape suffixes: R response tokens, H hidden size, K width of the (possibly blended) teacher head.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_srpo.config.training import TeacherConfig
from megatron_srpo.model.fp8 import without_fp8
from megatron_srpo.model.parallel import ProcessGroups
from megatron_srpo.ops import LinearHead
from megatron_srpo.training.average import TeacherAverage
from megatron_srpo.training.exchange import over_context
from megatron_srpo.training.heads import HeadForm, blended_head
from megatron_srpo.training.microbatches import MicroBatch, TokenSequence, in_step, micro_batches, scatter
from megatron_srpo.training.offload import HostWeights
from megatron_srpo.training.scoring import TokenScores, head_scores, hidden_states, spread_scores


@dataclass(frozen=True)
class Lesson:
    """What the teacher keeps of one rollout: scores everywhere, hidden states [R, K] on the last stage."""

    scores: TokenScores
    hidden_RK: Tensor | None


@dataclass(frozen=True)
class TeacherPass:
    """Lessons under the numbers of their sequences, and the head (last stage) that makes them logits."""

    lessons: dict[int, Lesson]
    head: LinearHead | None


class Teacher:
    """Holds the teacher's weights, sharded like the policy's.

    Args:
        policy: the model being trained.
        copy: a second model of the same layout and weights; ``None`` for mode ``live`` and where no algorithm
            asks the teacher.
        groups: of the policy; ranks with the same weights share the average in mode ``ema``.
        bf16: whether the policy, where it is asked, leaves FP8 for that pass. The copy is as it was built.
    """

    def __init__(
        self,
        config: TeacherConfig,
        policy: torch.nn.Module,
        copy: torch.nn.Module | None,
        groups: ProcessGroups,
        bf16: bool = False,
    ) -> None:
        self.config = config
        self.bf16 = bf16
        self.policy = policy
        self.copy = copy
        self._host = HostWeights(copy) if copy is not None and config.offload else None
        averaged = copy is not None and config.mode == "ema"
        self.average = TeacherAverage(copy, groups, config.offload) if averaged else None

    def update(self) -> None:
        """Take up the policy's weights: once per rollout batch, after its optimizer steps. A collective.

        The average is kept in fp32: in bf16 a rate of 0.05 would lose small updates.
        """
        if self.average is not None:
            self.average.follow(self.policy, self.config.ema_rate)

    def teach(
        self,
        sequences: Mapping[int, TokenSequence],
        capacity: int,
        groups: ProcessGroups,
        form: HeadForm,
    ) -> TeacherPass:
        """Re-score responses after their teacher prompts; forward only, over these sequences only.

        A collective over the replica: every rank passes the same sequences. With none, nothing runs, unless
        other replicas need this one's experts.
        """
        order = sorted(sequences)
        batches = micro_batches([sequences[number] for number in order], capacity, groups.split)
        shared = in_step(batches, groups)
        if not shared:
            return TeacherPass({}, None)
        models, shares = self._blend()
        with self._host.on_device() if self._host is not None else nullcontext():
            parts = [self._pass(*pair, shared) for pair in zip(models, shares, strict=True)]
            head = blended_head(models, form) if batches and groups.is_last_stage else None
        if not batches:
            return TeacherPass({}, None)
        hidden = [torch.cat(columns, dim=1) for columns in zip(*parts, strict=True)]
        with torch.no_grad():
            values = [head_scores(head, rows, batch) for rows, batch in zip(hidden, batches, strict=False)]
        scores = spread_scores(batches, values, len(order), groups)
        kept: list[Tensor | None] = [None] * len(scores)
        if groups.is_last_stage:
            whole = [over_context(rows, batch, groups) for rows, batch in zip(hidden, batches, strict=True)]
            kept = [*scatter(batches, whole, len(order))]
        lessons = map(Lesson, scores, kept)
        return TeacherPass(dict(zip(order, lessons, strict=True)), head)

    def _pass(self, model: torch.nn.Module, share: float, batches: Sequence[MicroBatch]) -> list[Tensor]:
        with without_fp8(model) if self.bf16 else nullcontext():
            return hidden_states(model, batches, share)

    def _blend(self) -> tuple[list[torch.nn.Module], list[float]]:
        """Return the models whose logits make up the teacher's, with their shares."""
        if self.config.mode == "live":
            return [self.policy], [1.0]
        assert self.copy is not None, "this run was built without a teacher"
        if self.config.mode == "trust_region":
            rate = self.config.trust_region_rate
            return [self.copy, self.policy], [1.0 - rate, rate]
        return [self.copy], [1.0]
