"""All operations on rows, one after another as a loss uses them, for any implementation and device."""

import numpy as np
import torch
from torch import Tensor

from megatron_srpo.ops.rows import Normaliser, Rows, RowSums, Slopes
from tests.ops import reference

Results = dict[str, np.ndarray]


def padded(columns_TV: Tensor, padding: int) -> Tensor:
    """A copy as a view of the first columns of a wider buffer, which holds NaN everywhere else."""
    tokens, width = columns_TV.shape
    buffer = torch.full((tokens, width + padding), float("nan"), dtype=columns_TV.dtype)
    buffer = buffer.to(columns_TV.device)
    buffer[:, :width] = columns_TV
    return buffer[:, :width]


def padding_is_untouched(columns_TV: Tensor) -> bool:
    """Whether the rest of the buffer of `padded` still holds NaN."""
    tokens, width = columns_TV.shape
    whole = columns_TV.as_strided((tokens, columns_TV.stride(0)), (columns_TV.stride(0), 1))
    return bool(whole[:, width:].isnan().all())


def normaliser(sums: RowSums) -> Normaliser:
    """Of rows that are whole."""
    return Normaliser(sums.max_T, sums.sum_T.log())


def token_weights(tokens: int) -> tuple[Tensor, Tensor]:
    """Weights of a loss that sums divergences and entropies: float64, one of each per token."""
    generator = torch.Generator().manual_seed(tokens)
    divergence_T, entropy_T = torch.randn(2, tokens, generator=generator, dtype=torch.float64)
    return divergence_T, entropy_T


def entropy_slopes(sums: RowSums, log_sum_T: Tensor, weight_T: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of p and of -p log p for weight x entropy."""
    assert sums.gap_T is not None
    return -weight_T * (log_sum_T + sums.gap_T / sums.sum_T), weight_T


def every_operation(
    rows: Rows, student_TV: Tensor, teacher_TV: Tensor, alpha: float, padding: int
) -> Results:
    """Results of all operations, by name; the logits stay. `gradient_TV` is that of weighted divergences and
    entropies, `entropy_gradient_TV` of the entropies alone, `log_prob_gradient_TV` of weighted -p.
    """
    student_VT, teacher_VT = padded(student_TV, padding), padded(teacher_TV, padding)
    s_sums, t_sums = rows.sums(student_VT, True), rows.sums(teacher_VT, False)
    assert t_sums.gap_T is None and s_sums.gap_T is not None
    student, teacher = normaliser(s_sums), normaliser(t_sums)
    weights = (item.to(student_TV) for item in token_weights(len(student_TV)))
    divergence_T, entropy_T = weights
    of_prob_T, of_entropy_T = entropy_slopes(s_sums, student.log_sum_T, entropy_T)

    alone_TV = padded(student_TV, padding)
    alone = rows.gradient_(alone_TV, None, student, Slopes(of_prob_T, of_entropy_T, None))
    plain_TV = padded(student_TV, padding)
    plain = rows.gradient_(plain_TV, None, student, Slopes(-divergence_T, None, None))

    loss_T, total_T = rows.divergence_(student_VT, teacher_VT, student, teacher, alpha)
    prob_TV, slope_TV = student_VT.clone(), teacher_VT.clone()
    slopes = Slopes(of_prob_T - divergence_T * total_T, of_entropy_T, divergence_T)
    gradient = rows.gradient_(student_VT, teacher_VT, student, slopes)
    buffers = (student_VT, teacher_VT, alone_TV, plain_TV)
    assert all(padding_is_untouched(item) for item in buffers), "wrote beyond the columns"
    results = {
        "max_T": s_sums.max_T,
        "sum_T": s_sums.sum_T,
        "gap_T": s_sums.gap_T,
        "teacher_max_T": t_sums.max_T,
        "teacher_sum_T": t_sums.sum_T,
        "loss_T": loss_T,
        "slope_sum_T": total_T,
        "prob_TV": prob_TV,
        "slope_TV": slope_TV,
        "gradient_TV": gradient,
        "entropy_gradient_TV": alone,
        "log_prob_gradient_TV": plain,
    }
    return {name: value.cpu().numpy() for name, value in results.items()}


def dense_operations(student_TV: Tensor, teacher_TV: Tensor, alpha: float) -> Results:
    """What autograd makes of the definitions, in float64; for finite logits."""
    exact_TV = student_TV.double().requires_grad_()
    divergence_T, entropy_T = token_weights(len(student_TV))
    loss_T = reference.divergence(exact_TV, teacher_TV.double(), alpha)
    entropy = (reference.entropy(exact_TV) * entropy_T).sum()
    (of_entropy,) = torch.autograd.grad(entropy, exact_TV, retain_graph=True)
    (of_both,) = torch.autograd.grad((loss_T * divergence_T).sum() + entropy, exact_TV)
    prob_TV = exact_TV.detach().softmax(dim=1)
    results = {
        "loss_T": loss_T.detach(),
        "prob_TV": prob_TV,
        "gradient_TV": of_both,
        "entropy_gradient_TV": of_entropy,
        "log_prob_gradient_TV": -divergence_T[:, None] * prob_TV,
    }
    return {name: value.numpy() for name, value in results.items()}
