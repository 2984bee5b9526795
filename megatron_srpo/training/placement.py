"""Which replica does what: the passes over a step's rollouts, dealt out so that all have the same work.

Replicas wait for one another twice: when the scores go back to where a rollout was sampled, and at every
optimizer step. So two things are made even: what comes before the first (scoring and the teacher's pass), and
every mini-batch's update. A rollout is taught where it is trained, because the teacher's hidden states would
be too many to travel; it is scored anywhere, and so the scores fill up what teaching leaves uneven.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from megatron_srpo.data.packing import balance, sequence_cost
from megatron_srpo.model.architecture import Qwen3Architecture


@dataclass(frozen=True)
class RolloutSize:
    """What every replica knows of a rollout, in tokens.

    Attributes:
        trained: whether it takes part in an optimizer step.
        teacher_prompt: 0 where the teacher does not re-score it; of rollouts that are trained only.
        mini_batch: which of the step's optimizer steps that is.
    """

    prompt: int
    response: int
    trained: bool
    teacher_prompt: int
    mini_batch: int


@dataclass(frozen=True)
class WorkCosts:
    """What passes cost, in tokens that go forward through all layers.

    Attributes:
        linear_tokens: sequence length at which attention costs as much as all matrices of a layer.
        head: cost of the head, per response token.
        update: forward passes that the forward and backward pass of an update are worth.
        reference: whether a reference policy scores what is trained.
    """

    linear_tokens: float
    head: float
    update: float = 3.0
    reference: bool = False

    @classmethod
    def of(cls, arch: Qwen3Architecture, recompute: str, reference: bool) -> "WorkCosts":
        """Count multiplications: 2 per parameter and token, and 2 T^2 per unit of a causal attention's width.

        Args:
            recompute: ``training.recompute``; with "full", backward repeats the forward pass.
        """
        attention = arch.num_heads * arch.head_dim
        layer = 2 * arch.hidden_size * (attention + arch.num_kv_heads * arch.head_dim)
        dense = arch.num_layers if arch.experts is None else len(arch.experts.dense_layers)
        units = dense * arch.ffn_hidden_size
        if arch.experts is not None:
            experts = arch.experts
            units += (arch.num_layers - dense) * experts.per_token * experts.ffn_hidden_size
        layers = arch.num_layers * layer + 3 * arch.hidden_size * units
        return cls(
            linear_tokens=layers / (arch.num_layers * attention),
            head=arch.vocab_size * arch.hidden_size / layers,
            update=4.0 if recompute == "full" else 3.0,
            reference=reference,
        )

    def forward(self, prompt: int, response: int) -> float:
        """Cost of one forward pass over a sequence."""
        return sequence_cost(prompt + response - 1, self.linear_tokens) + self.head * response

    def scoring(self, size: RolloutSize) -> float:
        """Cost of a rollout's old log-probs."""
        return self.forward(size.prompt, size.response)

    def preparing(self, size: RolloutSize) -> float:
        """Cost of what is computed before the update where a rollout is trained: teacher and reference."""
        taught = self.forward(size.teacher_prompt, size.response) if size.teacher_prompt else 0.0
        return taught + self.scoring(size) * self.reference

    def updating(self, size: RolloutSize) -> float:
        """Cost of a rollout's share in its optimizer step."""
        return self.update * self.scoring(size)


@dataclass(frozen=True)
class Placement:
    """By rollout, replica after replica: where it is scored, and where taught and trained (-1: nowhere).

    Attributes:
        slowest: work of the slowest replica between one meeting of the replicas and the next, added up over
            the step, divided by what it would be if all had the same.
    """

    scored: list[int]
    trained: list[int]
    slowest: float


def at_home(sizes: Sequence[Sequence[RolloutSize]], costs: WorkCosts) -> Placement:
    """Leave every rollout (``sizes``: by replica) where it was sampled."""
    home = [replica for replica, own in enumerate(sizes) for _ in own]
    trained = [replica if size.trained else -1 for replica, own in enumerate(sizes) for size in own]
    return Placement(home, trained, _slowest(sizes, costs, home, trained))


def dealt_out(sizes: Sequence[Sequence[RolloutSize]], costs: WorkCosts, fill: bool = True) -> Placement:
    """Deal the work out evenly, or leave it at home where that is even better; every rank finds the same.

    Args:
        sizes: by replica, its rollouts in their order.
        fill: make scoring and teaching even together; otherwise, where replicas meet in every layer, scoring
            is made even by itself.
    """
    every, replicas = [size for own in sizes for size in own], len(sizes)
    trained, loads = [-1] * len(every), [0.0] * replicas
    for mini_batch in sorted({size.mini_batch for size in every}):
        members = [i for i, size in enumerate(every) if size.mini_batch == mini_batch and size.trained]
        parts = balance([costs.updating(every[i]) for i in members], [0.0] * replicas)
        for replica, part in enumerate(parts):
            for place in part:
                trained[members[place]] = replica
                loads[replica] += costs.preparing(every[members[place]]) * fill
    scored = [0] * len(every)
    for replica, part in enumerate(balance([costs.scoring(size) for size in every], loads)):
        for index in part:
            scored[index] = replica
    dealt = Placement(scored, trained, _slowest(sizes, costs, scored, trained))
    return min(at_home(sizes, costs), dealt, key=lambda placement: placement.slowest)


def _slowest(
    sizes: Sequence[Sequence[RolloutSize]], costs: WorkCosts, scored: list[int], trained: list[int]
) -> float:
    """Return ``Placement.slowest``. Replicas meet once before the first optimizer step, and at every one."""
    every = [size for own in sizes for size in own]
    meetings = 2 + max((size.mini_batch for size in every), default=0)
    work = torch.zeros(meetings, len(sizes), dtype=torch.float64)
    for size, scorer, trainer in zip(every, scored, trained, strict=True):
        work[0, scorer] += costs.scoring(size)
        if trainer >= 0:
            work[0, trainer] += costs.preparing(size)
            work[1 + size.mini_batch, trainer] += costs.updating(size)
    return float(work.max(dim=1).values.sum() / work.mean(dim=1).sum())
