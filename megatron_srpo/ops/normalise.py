"""From sums over each rank's columns to normalisers, log-probs and entropies over the whole vocabulary.

Shapes: T tokens of a chunk, V this rank's real columns, N logits (the student's, and perhaps the teacher's).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from megatron_srpo.ops.rows import Normaliser, Rows, RowSums
from megatron_srpo.ops.shard import VocabShard


class Targets(NamedTuple):
    """Where the tokens' ids lie on this rank: a legal column, owned by this rank, real on some rank."""

    column_T: Tensor
    owned_T: Tensor
    real_T: Tensor


class Student(NamedTuple):
    """Per token, the same on all ranks. ``log_prob_T`` without targets and ``entropy_T`` unasked are None."""

    normaliser: Normaliser
    log_prob_T: Tensor | None
    entropy_T: Tensor | None


def locate(target_T: Tensor, shard: VocabShard) -> Targets:
    """Find the columns of global ids. A column that is not owned is 0."""
    local_T, owned_T, real_T = shard.locate(target_T)
    return Targets(torch.where(owned_T, local_T, 0), owned_T, real_T)


def normalise(
    student_TV: Tensor,
    teacher_TV: Tensor | None,
    targets: Targets | None,
    entropy: bool,
    shard: VocabShard,
    rows: Rows,
) -> tuple[Student, Normaliser | None]:
    """Normalise the logits of a chunk: two all-reduces, of one and of at most four numbers per token."""
    local = [rows.sums(student_TV, gap=entropy)]
    if teacher_TV is not None:
        local.append(rows.sums(teacher_TV, gap=False))
    max_NT = torch.stack([item.max_T for item in local])
    if shard.world > 1:
        max_NT = shard.max_(max_NT)
    parts = [*(_sum_below(item, max_T) for item, max_T in zip(local, max_NT, strict=True))]
    if entropy:
        parts.append(_gap_below(local[0], max_NT[0]))
    if targets is not None:
        parts.append(_chosen(student_TV, targets) - torch.where(targets.owned_T, max_NT[0], 0.0))
    return _finish(shard.sum_(torch.stack(parts)), max_NT, targets, entropy)


def _finish(
    sums_PT: Tensor, max_NT: Tensor, targets: Targets | None, entropy: bool
) -> tuple[Student, Normaliser | None]:
    count = len(max_NT)
    log_sum_NT = sums_PT[:count].log()
    # H = log sum + E[max - x]: both are >= 0, so nothing cancels.
    entropy_T = log_sum_NT[0] + sums_PT[count] / sums_PT[0] if entropy else None
    log_prob_T = None
    if targets is not None:
        log_prob_T = torch.where(targets.real_T, sums_PT[-1] - log_sum_NT[0], float("nan"))
    norms = [Normaliser(max_T, log_sum_T) for max_T, log_sum_T in zip(max_NT, log_sum_NT, strict=True)]
    return Student(norms[0], log_prob_T, entropy_T), norms[1] if count > 1 else None


def add_at_targets_(grad_TV: Tensor, targets: Targets, grad_T: Tensor) -> None:
    """Add each token's number at its target, on the rank that owns it."""
    if grad_TV.shape[1]:
        share_T = torch.where(targets.owned_T, grad_T, 0.0)
        grad_TV.scatter_add_(1, targets.column_T[:, None], share_T[:, None])


def _chosen(logits_TV: Tensor, targets: Targets) -> Tensor:
    if logits_TV.shape[1] == 0:
        return logits_TV.new_zeros(logits_TV.shape[0])
    return torch.where(targets.owned_T, logits_TV.gather(1, targets.column_T[:, None])[:, 0], 0.0)


def _sum_below(local: RowSums, max_T: Tensor) -> Tensor:
    """The rank's sum of exp(x - max) for a maximum that may be another rank's."""
    return local.sum_T * (local.max_T - max_T).exp()


def _gap_below(local: RowSums, max_T: Tensor) -> Tensor:
    """The same of (max - x) exp(x - max). A rank without columns (its maximum is -inf) has none."""
    assert local.gap_T is not None
    below_T = max_T - local.max_T
    moved_T = (local.gap_T + below_T * local.sum_T) * below_T.neg().exp()
    return moved_T.masked_fill(local.sum_T == 0, 0.0)
