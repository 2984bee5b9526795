"""What a loss needs of each row of logits, in place and block by block. The PyTorch implementation.

Shapes: T tokens of a chunk, V this rank's real columns. Logits are in the math type (fp32, or float64).

Nothing here communicates: a function ends where numbers of all ranks are needed. Of size T x V it holds no
more than the logits that it is given, and overwrites them; its temporaries cover a few rows at a time, which
on a CPU stay in the cache.
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from megatron_srpo.ops.events import divergence_events
from megatron_srpo.ops.shard import row_max

#: Size of one temporary: on a CPU a fraction of a core's cache; on a GPU enough to be busy with.
BLOCK_BYTES = {"cpu": 256 << 10, "cuda": 64 << 20}
#: Stands for -inf where it would be multiplied by 0.
_LOWEST = -1e30


class RowSums(NamedTuple):
    """Of exp(x) over this rank's columns, relative to their own maximum: all terms are >= 0.

    Attributes:
        max_T: largest logit; -inf without columns.
        sum_T: sum of exp(x - max).
        gap_T: sum of (max - x) exp(x - max), from which the entropy follows; None if not asked for.
    """

    max_T: Tensor
    sum_T: Tensor
    gap_T: Tensor | None


class Normaliser(NamedTuple):
    """Of softmax over the whole vocabulary: log p = (x - max) - log_sum. Not added up: that keeps digits."""

    max_T: Tensor
    log_sum_T: Tensor


class Slopes(NamedTuple):
    """How much of each part of the loss goes into the gradient of a row (:meth:`Rows.gradient_`).

    Attributes:
        probability_T: factor of p.
        entropy_T: factor of -p log p; None where the entropy is not in the loss.
        divergence_T: factor of the divergence's slopes; None without a teacher.
    """

    probability_T: Tensor
    entropy_T: Tensor | None
    divergence_T: Tensor | None


class Rows(Protocol):
    """The operations on rows. Implementations agree to rounding."""

    def sums(self, logits_TV: Tensor, gap: bool) -> RowSums:
        """Reduce each row; the logits stay."""
        ...

    def divergence_(
        self, student_TV: Tensor, teacher_TV: Tensor, student: Normaliser, teacher: Normaliser, alpha: float
    ) -> tuple[Tensor, Tensor]:
        """Return, summed over this rank's columns, each row's divergence and its slopes d loss / d log p.

        Overwrites both logits with what :meth:`gradient_` needs.
        """
        ...

    def gradient_(
        self, student_TV: Tensor, teacher_TV: Tensor | None, student: Normaliser, slopes: Slopes
    ) -> Tensor:
        """Return probability * p - entropy * p log p + divergence * slope in the place of the student.

        Args:
            teacher_TV: what :meth:`divergence_` left; None if it was not called (then ``student_TV`` holds
                logits).
        """
        ...


class TorchRows:
    """:class:`Rows` in PyTorch, on any device."""

    def sums(self, logits_TV: Tensor, gap: bool) -> RowSums:
        """Two passes, the second over blocks of rows."""
        max_T = row_max(logits_TV)
        top_T = max_T.clamp(min=_LOWEST)  # a row that is -inf throughout counts as one without columns
        sum_T = torch.zeros_like(max_T)
        gap_T = torch.zeros_like(max_T) if gap else None
        for rows in _blocks(logits_TV):
            below_TV = top_T[rows, None] - logits_TV[rows]
            if gap_T is None:
                sum_T[rows] = below_TV.neg_().exp_().sum(dim=1)
                continue
            exp_TV = below_TV.neg().exp_()
            sum_T[rows] = exp_TV.sum(dim=1)
            gap_T[rows] = below_TV.clamp_(max=-_LOWEST).mul_(exp_TV).sum(dim=1)  # 0 log 0 = 0
        return RowSums(max_T, sum_T, gap_T)

    def divergence_(
        self, student_TV: Tensor, teacher_TV: Tensor, student: Normaliser, teacher: Normaliser, alpha: float
    ) -> tuple[Tensor, Tensor]:
        """Leaves p in the student's place and the slopes in the teacher's."""
        loss_T, total_T = torch.zeros_like(student.max_T), torch.zeros_like(student.max_T)
        for rows in _blocks(student_TV):
            log_s_TV = _log_probs_(student_TV[rows], student, rows)
            log_t_TV = _log_probs_(teacher_TV[rows], teacher, rows)
            loss_T[rows], slope_TV, prob_TV = divergence_events(log_s_TV, log_t_TV, alpha, whole=True)
            total_T[rows] = slope_TV.sum(dim=1)
            student_TV[rows], teacher_TV[rows] = prob_TV, slope_TV
        return loss_T, total_T

    def gradient_(
        self, student_TV: Tensor, teacher_TV: Tensor | None, student: Normaliser, slopes: Slopes
    ) -> Tensor:
        """One pass over blocks of rows."""
        for rows in _blocks(student_TV):
            prob_TV = student_TV[rows]
            if teacher_TV is None:
                _log_probs_(prob_TV, student, rows).exp_()
            if slopes.entropy_T is None:
                prob_TV.mul_(slopes.probability_T[rows, None])
            else:
                bits_TV = torch.xlogy(prob_TV, prob_TV).mul_(slopes.entropy_T[rows, None])
                prob_TV.mul_(slopes.probability_T[rows, None]).sub_(bits_TV)
            if teacher_TV is not None and slopes.divergence_T is not None:
                prob_TV.addcmul_(teacher_TV[rows], slopes.divergence_T[rows, None])
        return student_TV


def _log_probs_(logits_TV: Tensor, normaliser: Normaliser, rows: slice) -> Tensor:
    return logits_TV.sub_(normaliser.max_T[rows, None]).sub_(normaliser.log_sum_T[rows, None])


def _blocks(columns_TV: Tensor) -> Iterator[slice]:
    """Cut the rows into blocks."""
    tokens, width = columns_TV.shape
    limit = BLOCK_BYTES.get(columns_TV.device.type, BLOCK_BYTES["cuda"])
    step = max(1, limit // max(1, width * columns_TV.element_size()))
    for start in range(0, tokens, step):
        yield slice(start, min(start + step, tokens))
