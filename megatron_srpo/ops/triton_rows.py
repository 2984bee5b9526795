"""What a loss needs of each row of logits, as Triton kernels for CUDA devices (Ampere and later).

Shapes as in :mod:`.rows`, whose protocol this implements with the numbers of :class:`.TorchRows` to rounding.
Import it only where it is chosen: it imports Triton. Without a device the same kernels run in Triton's
interpreter (``TRITON_INTERPRET=1`` before the import), which is how they are tested.
"""

import torch
from torch import Tensor

from megatron_srpo.ops import triton_kernels as kernels
from megatron_srpo.ops.rows import Normaliser, RowSums, Slopes, TorchRows

#: Columns that a program has in hand at once. A thread has eight, two loads of 16 bytes: enough bytes under
#: way to use the device's memory bandwidth, few enough values to stay in registers with several programs per
#: multiprocessor. With rows this long there is nothing to gain from tuning by measurement at run time.
_BLOCK_MAX = 2048
_BLOCK_MIN = 32
_COLUMNS_PER_WARP = 32 * 8


class TritonRows:
    """:class:`.Rows` as Triton kernels: one pass over the logits per operation, no temporaries.

    Logits are fp32 and on the current CUDA device, with contiguous rows of any stride (a view of the real
    columns of a padded buffer); nothing between the rows is read or written. float64, which only checks of
    gradients use, is computed by :class:`.TorchRows`.

    Every method raises ValueError for another type or layout of logits: a defect of the caller.
    """

    def __init__(self) -> None:
        self._float64 = TorchRows()

    def sums(self, logits_TV: Tensor, gap: bool) -> RowSums:
        """One pass. A row that is -inf throughout counts as one without columns: -inf, 0, 0."""
        if logits_TV.dtype == torch.float64:
            return self._float64.sums(logits_TV, gap)
        _check(logits_TV)
        tokens, width = logits_TV.shape
        max_T = logits_TV.new_full((tokens,), float("-inf"))
        sum_T = torch.zeros_like(max_T)
        gap_T = torch.zeros_like(max_T) if gap else None
        if logits_TV.numel():
            kernels.sums_kernel[(tokens,)](
                logits_TV, logits_TV.stride(0), width, max_T, sum_T, gap_T, **_launch(width)
            )
        return RowSums(max_T, sum_T, gap_T)

    def divergence_(
        self, student_TV: Tensor, teacher_TV: Tensor, student: Normaliser, teacher: Normaliser, alpha: float
    ) -> tuple[Tensor, Tensor]:
        """One pass; leaves p in the student's place and the slopes in the teacher's."""
        if student_TV.dtype == torch.float64:
            return self._float64.divergence_(student_TV, teacher_TV, student, teacher, alpha)
        _check(student_TV)
        _check(teacher_TV, like=student_TV)
        tokens, width = student_TV.shape
        loss_T, total_T = student_TV.new_zeros(tokens), student_TV.new_zeros(tokens)
        if student_TV.numel():
            kernels.divergence_kernel[(tokens,)](
                student_TV,
                teacher_TV,
                student_TV.stride(0),
                teacher_TV.stride(0),
                width,
                *(part_T.contiguous() for part_T in (*student, *teacher)),
                loss_T,
                total_T,
                1.0 - alpha,  # both weights, formed in float64: 1 - x in fp32 would round a small x away
                alpha,
                FORM=_form(alpha),
                SWAP=alpha > 0.5,
                **_launch(width),
            )
        return loss_T, total_T

    def gradient_(
        self, student_TV: Tensor, teacher_TV: Tensor | None, student: Normaliser, slopes: Slopes
    ) -> Tensor:
        """One pass."""
        if student_TV.dtype == torch.float64:
            return self._float64.gradient_(student_TV, teacher_TV, student, slopes)
        _check(student_TV)
        if teacher_TV is not None:
            _check(teacher_TV, like=student_TV)
        if not student_TV.numel():
            return student_TV
        tokens, width = student_TV.shape
        launch = _launch(width)
        factor_T = slopes.divergence_T if teacher_TV is not None else None
        kernels.gradient_kernel[(tokens, -(-width // launch["BLOCK"]))](
            student_TV,
            teacher_TV if factor_T is not None else None,
            student_TV.stride(0),
            teacher_TV.stride(0) if teacher_TV is not None else 0,
            width,
            *(part_T.contiguous() for part_T in student),
            slopes.probability_T.contiguous(),
            *(None if part_T is None else part_T.contiguous() for part_T in (slopes.entropy_T, factor_T)),
            LOGITS=teacher_TV is None,
            **launch,
        )
        return student_TV


def _form(alpha: float) -> int:
    """Return which of the kernel's forms alpha chooses."""
    forms = {0.0: kernels.KL_OF_TEACHER, 1.0: kernels.KL_OF_STUDENT}
    return forms.get(alpha, kernels.MIXTURE).value


def _launch(width: int) -> dict[str, int]:
    """Return block size and warps for rows of ``width`` > 0 columns."""
    block = min(_BLOCK_MAX, max(_BLOCK_MIN, 1 << (width - 1).bit_length()))
    return {"BLOCK": block, "num_warps": max(1, block // _COLUMNS_PER_WARP)}


def _check(logits_TV: Tensor, like: Tensor | None = None) -> None:
    if logits_TV.dtype != torch.float32:
        raise ValueError(f"logits of type {logits_TV.dtype}: the kernels take float32 (or float64)")
    if logits_TV.shape[1] > 1 and logits_TV.stride(1) != 1:
        raise ValueError(f"logits of strides {logits_TV.stride()}: the columns of a row must be adjacent")
    if like is not None and logits_TV.shape != like.shape:
        raise ValueError(f"student {tuple(like.shape)} and teacher {tuple(logits_TV.shape)} differ in shape")
