"""The kernels of :mod:`.triton_rows`, and the elementary functions that Triton lacks.

All mathematics is in fp32. A program works on one row or a part of it, and on a whole row where it sums, so
that every sum is formed in the same order whatever the number of rows. A row's offset is taken in 64 bits: a
chunk may hold more than 2^31 logits.
Importing this module imports Triton; nothing imports it but :mod:`.triton_rows`.
"""

import triton
import triton.language as tl

#: Forms of the divergence; :mod:`.divergence` defines them.
KL_OF_TEACHER = tl.constexpr(0)
KL_OF_STUDENT = tl.constexpr(1)
MIXTURE = tl.constexpr(2)

_LOWEST = tl.constexpr(-3.4028234663852886e38)  # the start of a running maximum: finite, so never inf - inf
_INF = tl.constexpr(float("inf"))
_LOG_RATIO_MAX = tl.constexpr(40.0)  # as in events.py: later exp would overflow
_LOG2_E = tl.constexpr(1.4426950408889634)
_LN2_HIGH = tl.constexpr(0.693359375)  # ln 2 to 9 bits: its product with an integer below 2^15 is exact
_LN2_LOW = tl.constexpr(-2.1219444005469057e-4)


@triton.jit
def _exp(x: tl.tensor) -> tl.tensor:
    """Return exp(x), relatively exact to |x| roundings, as logits of size |x| are. Below 1e-38 it may be 0.

    On a device this is one multiplication and one instruction, where tl.exp spends three more on numbers
    below 1e-38.
    """
    return tl.exp2(x * _LOG2_E)


@triton.jit
def expm1(x: tl.tensor) -> tl.tensor:
    """Return exp(x) - 1 for x <= 88, relatively exact to a few roundings also where x is small.

    x = n ln 2 + r with |r| <= 0.35; then 2^n (exp(r) - 1) + (2^n - 1). The Taylor series to r^8 is left with
    an error of r^8 / 9! = 6e-10. Below -40 the result is -1 to the last bit.
    """
    x = tl.maximum(x, -40.0)
    n = tl.floor(x * _LOG2_E + 0.5)
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    series = 1 / 720 + r * (1 / 5040 + r * (1 / 40320))
    series = 1 / 2 + r * (1 / 6 + r * (1 / 24 + r * (1 / 120 + r * series)))
    scale = tl.exp2(n)
    return scale * (r + r * r * series) + (scale - 1.0)


@triton.jit
def log1p(y: tl.tensor) -> tl.tensor:
    """Return log(1 + y) for y >= -1/2, relatively exact to a few roundings also where y is small.

    Up to 1 it is 2 artanh(z), z = y / (2 + y), |z| <= 1/3. The series to z^13 is left with an error of
    z^14 / 15 = 1.4e-8. (The logarithm of 1 + y would have lost y's digits to the 1 before it starts.)
    """
    z = y / (2.0 + y)
    square = z * z
    series = 1 / 7 + square * (1 / 9 + square * (1 / 11 + square * (1 / 13)))
    series = square * (1 / 3 + square * (1 / 5 + square * series))
    return tl.where(y > 1.0, tl.log(1.0 + y), 2.0 * (z + z * series))


@triton.jit
def _weighted(value: tl.tensor, prob: tl.tensor) -> tl.tensor:
    """Return prob * value with 0 * (infinite or undefined) = 0."""
    return tl.where(prob == 0.0, 0.0, prob * value)


@triton.jit
def _difference(s: tl.tensor, t: tl.tensor, delta: tl.tensor) -> tl.tensor:
    """Return s - t from delta = log t/s: relatively exact where s and t, each rounded, would cancel."""
    return _weighted(expm1(-tl.abs(delta)), tl.where(delta > 0.0, t, -s))


@triton.jit
def _log_mixture_ratios(delta: tl.tensor, weight: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Return (log m/a, log m/b) from delta = log b/a, for m = (1 - weight) a + weight b and weight <= 1/2.

    Past 40, log m/a stays what it is at 40; its factor a is below exp(-delta), so a log m/a loses 2e-18.
    """
    bounded = tl.minimum(delta, _LOG_RATIO_MAX)
    ratio = log1p(weight * expm1(bounded))
    return ratio, ratio - bounded


@triton.jit
def _events(
    log_s: tl.tensor,
    log_t: tl.tensor,
    s_weight: tl.tensor,
    t_weight: tl.tensor,
    FORM: tl.constexpr,
    SWAP: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return (loss, slope, student's probability) of every event: `divergence_events` with whole=True.

    SWAP: the teacher's weight, alpha, is above 1/2.
    """
    s, t, delta = _exp(log_s), _exp(log_t), log_t - log_s
    if FORM == KL_OF_TEACHER:
        slope = _difference(s, t, delta)
        loss = _weighted(delta, t) + slope
    elif FORM == KL_OF_STUDENT:
        slope = _weighted(-delta, s)
        loss = slope - _difference(s, t, delta)
    else:
        if SWAP:
            ratio_t, ratio_s = _log_mixture_ratios(-delta, s_weight)
        else:
            ratio_s, ratio_t = _log_mixture_ratios(delta, t_weight)
        slope = -s_weight * _weighted(ratio_s, s)
        loss = slope - t_weight * _weighted(ratio_t, t)
    return loss, slope, s


@triton.jit
def sums_kernel(
    logits: tl.tensor,
    stride: tl.tensor,
    width: tl.tensor,
    max_out: tl.tensor,
    sum_out: tl.tensor,
    gap_out: tl.tensor | None,
    BLOCK: tl.constexpr,
) -> None:
    """Reduce one row in one pass: its maximum, sum of exp(x - max), sum of (max - x) exp(x - max).

    Every lane keeps a maximum of its own, which costs one exponential per logit and no exchange between
    lanes before the end. When the maximum m rises by d, the sums become exp(-d) S and exp(-d) (G + d S).
    """
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    top = tl.full((BLOCK,), _LOWEST, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    gap = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, width, BLOCK):
        column = first + lane
        x = tl.load(logits + row * stride + column, mask=column < width, other=-_INF)
        possible = x != -_INF
        distance = tl.where(possible, tl.abs(x - top), 0.0)
        factor = tl.where(possible, _exp(-distance), 0.0)
        rises = x > top
        if gap_out is not None:
            gap = tl.where(rises, factor * (gap + distance * total), gap + distance * factor)
        total = tl.where(rises, factor * total + 1.0, total + factor)
        top = tl.maximum(top, x)
    row_top = tl.max(top, axis=0)
    scale = _exp(top - row_top)
    row_total = tl.sum(scale * total, axis=0)
    tl.store(
        max_out + row, tl.where(row_total == 0.0, -_INF, row_top)
    )  # nothing possible: as without columns
    tl.store(sum_out + row, row_total)
    if gap_out is not None:
        tl.store(gap_out + row, tl.sum(scale * (gap + (row_top - top) * total), axis=0))


@triton.jit
def divergence_kernel(
    student: tl.tensor,
    teacher: tl.tensor,
    student_stride: tl.tensor,
    teacher_stride: tl.tensor,
    width: tl.tensor,
    student_max: tl.tensor,
    student_log_sum: tl.tensor,
    teacher_max: tl.tensor,
    teacher_log_sum: tl.tensor,
    loss_out: tl.tensor,
    slope_out: tl.tensor,
    s_weight: tl.tensor,
    t_weight: tl.tensor,
    FORM: tl.constexpr,
    SWAP: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Replace one row of logits by p and slopes, and write the row's sums of the loss and the slopes."""
    row = tl.program_id(0).to(tl.int64)
    s_max, s_log_sum = tl.load(student_max + row), tl.load(student_log_sum + row)
    t_max, t_log_sum = tl.load(teacher_max + row), tl.load(teacher_log_sum + row)
    lane = tl.arange(0, BLOCK)
    loss_sum = tl.zeros((BLOCK,), tl.float32)
    slope_sum = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, width, BLOCK):
        column = first + lane
        inside = column < width
        s_place = student + row * student_stride + column
        t_place = teacher + row * teacher_stride + column
        log_s = (tl.load(s_place, mask=inside, other=-_INF) - s_max) - s_log_sum
        log_t = (tl.load(t_place, mask=inside, other=-_INF) - t_max) - t_log_sum
        loss, slope, prob = _events(log_s, log_t, s_weight, t_weight, FORM, SWAP)
        tl.store(s_place, prob, mask=inside)
        tl.store(t_place, slope, mask=inside)
        loss_sum += loss
        slope_sum += slope
    tl.store(loss_out + row, tl.sum(loss_sum, axis=0))
    tl.store(slope_out + row, tl.sum(slope_sum, axis=0))


@triton.jit
def gradient_kernel(
    student: tl.tensor,
    slope: tl.tensor | None,
    student_stride: tl.tensor,
    slope_stride: tl.tensor,
    width: tl.tensor,
    student_max: tl.tensor,
    student_log_sum: tl.tensor,
    probability_factor: tl.tensor,
    entropy_factor: tl.tensor | None,
    slope_factor: tl.tensor | None,
    LOGITS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Write a block of one row of the gradient over the student's logits (LOGITS) or probabilities."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    place = student + row * student_stride + column
    value = tl.load(place, mask=inside, other=0.0)
    if LOGITS:
        log_prob = (value - tl.load(student_max + row)) - tl.load(student_log_sum + row)
        prob = _exp(log_prob)
    else:
        prob = value
        log_prob = tl.log(prob)
    gradient = tl.load(probability_factor + row) * prob
    if entropy_factor is not None:
        gradient -= tl.load(entropy_factor + row) * _weighted(log_prob, prob)
    if slope_factor is not None:
        of_slope = tl.load(slope + row * slope_stride + column, mask=inside, other=0.0)
        gradient += tl.load(slope_factor + row) * of_slope
    tl.store(place, gradient, mask=inside)
