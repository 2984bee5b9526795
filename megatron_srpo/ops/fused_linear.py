"""Losses straight from hidden states and a vocabulary shard of the head, without a T x V tensor.

Shapes: T tokens, D of them with a teacher (the last ones), H and K hidden sizes of student and teacher, V
this rank's columns, C tokens of a chunk.

Tokens are taken in chunks. A chunk's logits are formed, reduced to a few numbers per token, turned into the
gradient of the logits in the same memory, and multiplied back to hidden states and head before the next chunk
begins. So the gradient of a loss is formed in forward (three matrix products; a fourth for the teacher) and
only scaled in backward. That needs the derivative of the loss with respect to each token's log-prob, entropy
and divergence at once: the loss is given as a function of these (``token_loss``).

Collectives per chunk: one maximum and one sum of a few numbers per token, and one sum more with a teacher;
and one sum of the hidden states' gradient in backward. Every rank of the group makes the same calls with the
same number of tokens, which may be 0. Context and data parallelism need nothing: tokens are independent, and
the head's gradient is summed over replicas like any other. The idea of chunks with the gradient in forward:
Liger-Kernel (arXiv 2410.10989); the vocabulary-parallel form, exact entropies and divergences are this
project's.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_srpo.errors import ConfigError
from megatron_srpo.ops.backend import rows_for
from megatron_srpo.ops.divergence import check_alpha, vocab_parallel_topk_divergence
from megatron_srpo.ops.fused_memory import chunk_tokens
from megatron_srpo.ops.head import HeadGradients, LinearHead
from megatron_srpo.ops.log_prob import LogProbs
from megatron_srpo.ops.normalise import Student, add_at_targets_, locate, normalise
from megatron_srpo.ops.rows import Normaliser, Slopes
from megatron_srpo.ops.shard import math_dtype
from megatron_srpo.ops.tokens import enter


class TokenTerms(NamedTuple):
    """What a token loss is a function of, for the tokens of one chunk; each the same on all ranks, in nats.

    Attributes:
        log_prob_T: of the targets; None where no targets were given.
        entropy_T: exact entropy of the student; None where it was not asked for.
        divergence_T: of student and teacher; None in chunks without a teacher.
    """

    log_prob_T: Tensor | None
    entropy_T: Tensor | None
    divergence_T: Tensor | None


TokenLoss = Callable[[slice, TokenTerms], Tensor]
"""Maps (which tokens, their terms) to a scalar; the loss is the sum over chunks. It must be the same on all
ranks of the group, and may keep what it likes of the (detached) terms."""


@dataclass(frozen=True)
class Divergence:
    """Which divergence of student S and teacher T (see :mod:`.divergence`).

    Attributes:
        alpha: 0 is KL(T||S), 1 is KL(S||T), between them the generalised Jensen-Shannon divergence.
        top_k: over the student's k most probable entries; None: over all of them, exactly.
        tail: with ``top_k``, keep everything else as one more event; otherwise renormalise over the k.

    Raises:
        ConfigError: alpha outside [0, 1] or k below 1.
    """

    alpha: float = 0.5
    top_k: int | None = None
    tail: bool = True

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k {self.top_k}: give at least 1, or none for the whole vocabulary")


@dataclass(frozen=True)
class TeacherSide:
    """The teacher of the last D tokens: hidden states, head, and how it is compared. Takes no gradient."""

    hidden_DK: Tensor
    head: LinearHead
    divergence: Divergence


def fused_linear_loss(
    hidden_TH: Tensor,
    head: LinearHead,
    token_loss: TokenLoss,
    *,
    target_T: Tensor | None = None,
    entropy: bool = False,
    teacher: TeacherSide | None = None,
    sequence_parallel: bool = False,
    chunk: int | None = None,
) -> Tensor:
    """Return the sum of ``token_loss`` over chunks of tokens, differentiable in hidden states and head.

    Args:
        hidden_TH: the student's, the same on every rank of the head's group; with ``sequence_parallel`` this
            rank's equal part of the tokens, in rank order.
        token_loss: called once per chunk, in order, in forward.
        target_T: global ids of the tokens whose log-prob is wanted, of all T tokens. An id outside the
            vocabulary gives NaN (see ``check_targets``).
        entropy: whether the student's entropy is wanted.
        teacher: its hidden states stand for the last D tokens of all T, and are the same on every rank.
        chunk: tokens per chunk; by default as many as suit the device (:mod:`.fused_memory`).

    Returns:
        A scalar in the math type (fp32, or float64 for float64). Its gradient may be taken once.

    Raises:
        ValueError: shapes that do not fit.
        ConfigError: a k above the size of the vocabulary.
    """
    head.check_hidden(hidden_TH)
    if teacher is not None:
        _check_teacher(teacher, head)
    whole_TH = enter(hidden_TH, head.shard, sequence_parallel)
    call = _Call(head, token_loss, target_T, entropy, teacher, chunk)
    return _FusedLoss.apply(whole_TH, head.weight_VH, call)


def fused_linear_divergence(
    hidden_TH: Tensor,
    head: LinearHead,
    teacher: TeacherSide,
    *,
    weights_T: Tensor | None = None,
    sequence_parallel: bool = False,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return (sum over tokens of weight x divergence, the divergences (T,) without gradient).

    Args:
        teacher: of all T tokens.
        weights_T: by default 1. A token of weight 0 costs as much as another: leave it out instead.

    The other arguments and the errors are those of :func:`fused_linear_loss`.
    """
    kept: list[Tensor] = []

    def weighted(rows: slice, terms: TokenTerms) -> Tensor:
        assert terms.divergence_T is not None, "the teacher must have hidden states for every token"
        kept.append(terms.divergence_T.detach())
        weighted_T = terms.divergence_T if weights_T is None else terms.divergence_T * weights_T[rows]
        return weighted_T.sum()

    loss = fused_linear_loss(
        hidden_TH, head, weighted, teacher=teacher, sequence_parallel=sequence_parallel, chunk=chunk
    )
    return loss, torch.cat(kept) if kept else loss.new_zeros(0)


def fused_linear_log_prob(
    hidden_TH: Tensor,
    head: LinearHead,
    target_T: Tensor,
    *,
    entropy: bool = False,
    sequence_parallel: bool = False,
    chunk: int | None = None,
) -> LogProbs:
    """Return log-probs of the targets, log-normalisers and (if asked for) entropies, each (T,), in nats.

    Differentiable for any use of them: backward forms the logits again, a fourth matrix product. Where the
    loss is known beforehand, :func:`fused_linear_loss` needs three. Arguments and errors are as there.
    """
    head.check_hidden(hidden_TH)
    whole_TH = enter(hidden_TH, head.shard, sequence_parallel)
    return LogProbs(*_FusedLogProb.apply(whole_TH, head.weight_VH, head, target_T, entropy, chunk))


class _Call(NamedTuple):
    """The arguments of one fused loss."""

    head: LinearHead
    token_loss: TokenLoss
    target_T: Tensor | None
    entropy: bool
    teacher: TeacherSide | None
    chunk: int | None


class _FusedLoss(torch.autograd.Function):
    """(hidden_TH, weight_VH) -> loss; keeps the two gradients, nothing else."""

    @staticmethod
    def forward(ctx: Any, hidden_TH: Tensor, weight_VH: Tensor, call: _Call) -> Tensor:
        wanted = (ctx.needs_input_grad[0], ctx.needs_input_grad[1])
        ctx.gradients = HeadGradients(call.head, hidden_TH, wanted)
        loss = torch.zeros((), dtype=math_dtype(hidden_TH), device=hidden_TH.device)
        walk = _Walk(call, hidden_TH)
        for rows in walk.chunks():
            part, grad_CV = walk.chunk(rows, any(wanted))
            loss += part
            if grad_CV is not None:
                ctx.gradients.add(rows, grad_CV)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        if ctx.gradients is None:
            raise RuntimeError("the gradient of a fused loss was formed in forward and can be taken once")
        gradients, ctx.gradients = ctx.gradients, None
        return (*gradients.scaled(grad_loss), None)


class _Walk:
    """The chunks of one call, with memory for their logits that is used again and again."""

    def __init__(self, call: _Call, hidden_TH: Tensor) -> None:
        self._call, self._hidden_TH = call, hidden_TH
        self._rows = rows_for(hidden_TH)
        self._step = call.chunk or _chunk_tokens(call.head, hidden_TH, call.teacher is not None)
        teacher = call.teacher
        self._first_taught = len(hidden_TH) - (0 if teacher is None else len(teacher.hidden_DK))
        if self._first_taught < 0:
            raise ValueError(
                f"a teacher of {len(hidden_TH) - self._first_taught} tokens, of {len(hidden_TH)}"
            )
        shard = call.head.shard
        # The operations on top-k entries take whole shards; all else leaves padding out.
        whole = teacher is not None and teacher.divergence.top_k is not None
        self._columns = shard.local_size if whole else shard.valid_local
        self._student = _Buffer(self._columns, hidden_TH)
        self._teacher = _Buffer(self._columns, hidden_TH)

    def chunks(self) -> Iterator[slice]:
        """Cut the tokens into chunks, those without a teacher first."""
        parts = ((0, self._first_taught), (self._first_taught, len(self._hidden_TH)))
        for first, last in parts:
            for start in range(first, last, self._step):
                yield slice(start, min(start + self._step, last))

    def chunk(self, rows: slice, gradient: bool) -> tuple[Tensor, Tensor | None]:
        """Return the loss of a chunk, and the gradient of its real logits if that is wanted."""
        head, teacher = self._call.head, self._call.teacher
        student_CV = head.logits(self._hidden_TH[rows], self._student.rows(rows))
        taught = teacher is not None and rows.start >= self._first_taught
        if not taught:
            return self._finish(rows, student_CV, None, gradient)
        assert teacher is not None
        theirs = slice(rows.start - self._first_taught, rows.stop - self._first_taught)
        hidden_CK = teacher.hidden_DK[theirs].detach()
        teacher_CV = teacher.head.logits(hidden_CK, self._teacher.rows(theirs))
        return self._finish(rows, student_CV, _Compared(teacher_CV, teacher.divergence), gradient)

    def _finish(
        self, rows: slice, student_CV: Tensor, compared: "_Compared | None", gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        call, shard = self._call, self._call.head.shard
        targets = None if call.target_T is None else locate(call.target_T[rows], shard)
        full = compared is not None and compared.form.top_k is None
        ours_CV = shard.valid(student_CV)
        theirs_CV = shard.valid(compared.teacher_CV) if compared is not None and full else None
        student, teacher = normalise(ours_CV, theirs_CV, targets, call.entropy, shard, self._rows)
        divergence_T, slope_T, top = None, None, None
        if compared is not None and theirs_CV is not None:
            assert teacher is not None
            divergence_T, slope_T = self._compare(ours_CV, theirs_CV, student.normaliser, teacher, compared)
        elif compared is not None:
            top = _TopEntries(student_CV, compared, call.head)
            divergence_T = top.divergence_T
        terms = TokenTerms(student.log_prob_T, student.entropy_T, divergence_T)
        loss, grads = _derive(call.token_loss, rows, terms, gradient)
        if not gradient:
            return loss, None
        slopes = _slopes(student, grads, slope_T)
        self._rows.gradient_(ours_CV, theirs_CV, student.normaliser, slopes)
        if targets is not None and grads.log_prob_T is not None:
            add_at_targets_(ours_CV, targets, grads.log_prob_T)
        if top is not None and grads.divergence_T is not None:
            ours_CV.add_(shard.valid(top.gradient(grads.divergence_T)))
        return loss, ours_CV

    def _compare(
        self, ours_CV: Tensor, theirs_CV: Tensor, ours: Normaliser, theirs: Normaliser, compared: "_Compared"
    ) -> tuple[Tensor, Tensor]:
        alpha = compared.form.alpha
        loss_T, slope_T = self._rows.divergence_(ours_CV, theirs_CV, ours, theirs, alpha)
        loss_T, slope_T = self._call.head.shard.sum_(torch.stack([loss_T, slope_T]))
        return loss_T, slope_T


class _Compared(NamedTuple):
    """The teacher's logits of a chunk and the form of the divergence."""

    teacher_CV: Tensor
    form: Divergence


class _TopEntries:
    """The divergence over the student's most probable entries, with its own small graph."""

    def __init__(self, student_CV: Tensor, compared: _Compared, head: LinearHead) -> None:
        form = compared.form
        assert form.top_k is not None
        with torch.enable_grad():
            # A copy: the logits are overwritten before the gradient is asked for.
            self._leaf_CV = student_CV.clone().requires_grad_()
            self._graph_T = vocab_parallel_topk_divergence(
                self._leaf_CV, compared.teacher_CV, form.alpha, form.top_k, head.shard, form.tail
            )
        self.divergence_T = self._graph_T.detach()

    def gradient(self, grad_T: Tensor) -> Tensor:
        """Return the gradient of the logits."""
        (grad_CV,) = torch.autograd.grad(self._graph_T, self._leaf_CV, grad_T)
        return grad_CV


class _Buffer:
    """Memory for the logits of one chunk."""

    def __init__(self, columns: int, like: Tensor) -> None:
        self._columns, self._like = columns, like
        self._memory: Tensor | None = None

    def rows(self, rows: slice) -> Tensor:
        """Return room for so many rows; the first call must ask for most."""
        count = rows.stop - rows.start
        if self._memory is None or len(self._memory) < count:
            dtype, device = math_dtype(self._like), self._like.device
            self._memory = torch.empty(count, self._columns, dtype=dtype, device=device)
        return self._memory[:count]


def _derive(
    token_loss: TokenLoss, rows: slice, terms: TokenTerms, gradient: bool
) -> tuple[Tensor, TokenTerms]:
    """Return a chunk's loss and its derivatives with respect to the terms; None for those it ignores."""
    nothing = TokenTerms(None, None, None)
    if not gradient:
        return token_loss(rows, terms).detach(), nothing
    with torch.enable_grad():
        leaves = TokenTerms(*(None if term is None else term.detach().requires_grad_() for term in terms))
        loss = token_loss(rows, leaves)
    if not loss.requires_grad:
        return loss.detach(), nothing
    given = [leaf for leaf in leaves if leaf is not None]
    found = iter(torch.autograd.grad(loss, given, allow_unused=True))
    return loss.detach(), TokenTerms(*(None if leaf is None else next(found) for leaf in leaves))


def _slopes(student: Student, grads: TokenTerms, slope_T: Tensor | None) -> Slopes:
    """Turn derivatives of a loss into factors of the gradient of the logits.

    With p the student's probabilities, the gradients of log-prob, entropy H and divergence are e - p,
    -p (log p + H) and slope - p (sum of slopes).
    """
    probability_T = torch.zeros_like(student.normaliser.max_T)
    if grads.log_prob_T is not None:
        probability_T -= grads.log_prob_T
    if grads.entropy_T is not None:
        assert student.entropy_T is not None
        probability_T -= grads.entropy_T * student.entropy_T
    divergence_T = None
    if slope_T is not None:
        divergence_T = torch.zeros_like(slope_T) if grads.divergence_T is None else grads.divergence_T
        probability_T -= divergence_T * slope_T
    return Slopes(probability_T, grads.entropy_T, divergence_T)


class _FusedLogProb(torch.autograd.Function):
    """(hidden_TH, weight_VH) -> log-prob, entropy (or None), log-normaliser; logits are formed twice."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TH: Tensor,
        weight_VH: Tensor,
        head: LinearHead,
        target_T: Tensor,
        entropy: bool,
        chunk: int | None,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        ctx.head, ctx.chunk = head, chunk
        found = [
            _chunk_scores(logits_CV, target_T[rows], entropy, head)
            for rows, logits_CV in _logit_chunks(hidden_TH, head, chunk)
        ]
        empty_T = torch.zeros(0, dtype=math_dtype(hidden_TH), device=hidden_TH.device)
        log_prob_T = torch.cat([empty_T, *(item.log_prob_T for item in found)])
        entropy_T = torch.cat([empty_T, *(item.entropy_T for item in found)]) if entropy else None
        max_T = torch.cat([empty_T, *(item.normaliser.max_T for item in found)])
        log_sum_T = torch.cat([empty_T, *(item.normaliser.log_sum_T for item in found)])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden_TH, target_T, max_T, log_sum_T, entropy_T)
        return log_prob_T, entropy_T, max_T + log_sum_T

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_T: Tensor | None, grad_entropy_T: Tensor | None, grad_normaliser_T: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        hidden_TH, target_T, max_T, log_sum_T, entropy_T = ctx.saved_tensors
        student = Student(Normaliser(max_T, log_sum_T), None, entropy_T)
        slopes = _slopes(student, TokenTerms(grad_T, grad_entropy_T, None), None)
        if grad_normaliser_T is not None:
            slopes.probability_T.add_(grad_normaliser_T)
        gradients = HeadGradients(ctx.head, hidden_TH, (ctx.needs_input_grad[0], ctx.needs_input_grad[1]))
        rows_of = rows_for(hidden_TH)
        for rows, logits_CV in _logit_chunks(hidden_TH, ctx.head, ctx.chunk):
            norm = Normaliser(max_T[rows], log_sum_T[rows])
            part = Slopes(*(None if slope is None else slope[rows] for slope in slopes))
            rows_of.gradient_(logits_CV, None, norm, part)
            if grad_T is not None:
                add_at_targets_(logits_CV, locate(target_T[rows], ctx.head.shard), grad_T[rows])
            gradients.add(rows, logits_CV)
        one = torch.ones((), dtype=math_dtype(hidden_TH), device=hidden_TH.device)
        return (*gradients.scaled(one), None, None, None, None)


def _logit_chunks(hidden_TH: Tensor, head: LinearHead, chunk: int | None) -> Iterator[tuple[slice, Tensor]]:
    """Yield the logits of real columns chunk by chunk, always in the same memory."""
    step = chunk or _chunk_tokens(head, hidden_TH, teacher=False)
    buffer = _Buffer(head.shard.valid_local, hidden_TH)
    for start in range(0, len(hidden_TH), step):
        rows = slice(start, min(start + step, len(hidden_TH)))
        yield rows, head.logits(hidden_TH[rows], buffer.rows(rows))


def _chunk_scores(logits_CV: Tensor, target_C: Tensor, entropy: bool, head: LinearHead) -> Student:
    targets, rows = locate(target_C, head.shard), rows_for(logits_CV)
    return normalise(logits_CV, None, targets, entropy, head.shard, rows)[0]


def _chunk_tokens(head: LinearHead, hidden_TH: Tensor, teacher: bool) -> int:
    return chunk_tokens(head.shard.local_size, math_dtype(hidden_TH), hidden_TH.device.type, teacher)


def _check_teacher(teacher: TeacherSide, head: LinearHead) -> None:
    teacher.head.check_hidden(teacher.hidden_DK)
    k, size = teacher.divergence.top_k, head.shard.vocab_size
    if k is not None and k > size:
        raise ConfigError(f"top_k {k} with a vocabulary of {size} entries: give at most {size}")
    if teacher.head.shard != head.shard:
        raise ValueError("the teacher's head must be cut like the student's: same group and sizes")
