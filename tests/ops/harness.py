"""One case, two ways: an operation on the shards of several ranks, and its dense float64 reference.

A `Case` is a small picklable description; both sides build the same numbers from it. Padding columns hold
NaN, so that anything that reads them shows.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from hypothesis import strategies as st
from torch import Tensor

from megatron_srpo import ops
from megatron_srpo.ops import VocabShard
from tests.ops import reference
from tests.ranks import run_ranks

ALPHAS = (0.0, 0.01, 0.3, 0.5, 0.9, 1.0)
Results = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """Sizes and settings; `padding` counts extra columns per rank beyond the smallest legal padded size."""

    tokens: int = 3
    vocab_size: int = 13
    padding: int = 0
    alpha: float = 0.5
    k: int = 4
    tail: bool = True
    temperature: float = 1.0
    scale: float = 3.0
    ties: bool = False
    dtype: str = "float32"
    seed: int = 0

    def padded_size(self, world: int) -> int:
        return (-(-self.vocab_size // world) + self.padding) * world


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any sizes, no tokens and whole ranks of padding included; logits from nearly flat to nearly one-hot."""
    vocab_size = draw(st.integers(1, 40))
    return Case(
        tokens=draw(st.integers(0, 4)),
        vocab_size=vocab_size,
        padding=draw(st.sampled_from([0, 1, vocab_size])),
        alpha=draw(st.sampled_from(ALPHAS) | st.floats(0.0, 1.0)),
        k=draw(st.integers(1, vocab_size)),
        tail=draw(st.booleans()),
        temperature=draw(st.floats(0.3, 2.0)),
        scale=draw(st.sampled_from([0.1, 1.0, 5.0, 30.0])),
        ties=draw(st.booleans()),
        dtype=draw(st.sampled_from(["float32", "float64"])),
        seed=draw(st.integers(0, 2**20)),
    )


@dataclass
class Inputs:
    """Whole (unsharded, unpadded) tensors of a case; `dtype` is the case's, so float64 copies are exact."""

    student_TV: Tensor
    teacher_TV: Tensor
    target_T: Tensor
    ids_TK: Tensor
    hidden_TH: Tensor
    teacher_hidden_TH: Tensor
    weight_VH: Tensor


def make_inputs(case: Case) -> Inputs:
    """The numbers of a case, from its seed."""
    generator = torch.Generator().manual_seed(case.seed)
    dtype = getattr(torch, case.dtype)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    logits = [normal(case.tokens, case.vocab_size) * case.scale for _ in range(2)]
    if case.ties:
        logits = [torch.round(item) for item in logits]
    ids = torch.randint(case.vocab_size, (case.tokens, case.k + 1), generator=generator)
    hidden = 6
    return Inputs(
        student_TV=logits[0].to(dtype),
        teacher_TV=logits[1].to(dtype),
        target_T=ids[:, 0],
        ids_TK=ids[:, 1:],
        hidden_TH=normal(case.tokens, hidden).to(dtype),
        teacher_hidden_TH=normal(case.tokens, hidden).to(dtype),
        weight_VH=normal(case.vocab_size, hidden).to(dtype),
    )


# An operation returns (outputs by name, leaves whose gradient is compared). Sharded leaves are (T, V) or (V,
# H).
Outcome = tuple[dict[str, Tensor], dict[str, Tensor]]


def _cut(whole: Tensor, shard: VocabShard, dim: int) -> Tensor:
    """This rank's part of a tensor along its vocabulary dimension, padding filled with NaN."""
    shape = list(whole.shape)
    shape[dim] = shard.padded_size
    padded = torch.full(shape, float("nan"), dtype=whole.dtype)
    padded.narrow(dim, 0, whole.shape[dim]).copy_(whole)
    return padded.narrow(dim, shard.start, shard.local_size).clone()


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_()


def sharded_log_prob(case: Case, x: Inputs, shard: VocabShard) -> Outcome:
    student = _leaf(_cut(x.student_TV, shard, 1))
    result = ops.vocab_parallel_log_prob(student, x.target_T, shard, entropy=True)
    outputs = {**result._asdict(), "entropy_alone_T": ops.vocab_parallel_entropy(student, shard)}
    return outputs, {"student_TV": student}


def dense_log_prob(case: Case, x: Inputs) -> Outcome:
    student = _leaf(x.student_TV.double())
    entropy = reference.entropy(student)
    outputs = {
        "log_prob_T": reference.log_prob(student, x.target_T),
        "entropy_T": entropy,
        "log_normaliser_T": student.logsumexp(dim=-1),
        "entropy_alone_T": entropy,
    }
    return outputs, {"student_TV": student}


def sharded_gather(case: Case, x: Inputs, shard: VocabShard) -> Outcome:
    student = _leaf(_cut(x.student_TV, shard, 1))
    values, ids = ops.vocab_parallel_topk(student, case.k, shard)
    top = ops.vocab_parallel_gather(student, ids, shard)
    assert torch.equal(top, values)
    at_ids = ops.vocab_parallel_gather(student, x.ids_TK, shard)
    return {"top_TK": top, "top_ids_TK": ids, "at_ids_TK": at_ids}, {"student_TV": student}


def dense_gather(case: Case, x: Inputs) -> Outcome:
    student = _leaf(x.student_TV.double())
    ids = reference.topk_ids(student, case.k)
    outputs = {"top_TK": student.gather(1, ids), "top_ids_TK": ids, "at_ids_TK": student.gather(1, x.ids_TK)}
    return outputs, {"student_TV": student}


def sharded_divergence(case: Case, x: Inputs, shard: VocabShard) -> Outcome:
    student, teacher = _leaf(_cut(x.student_TV, shard, 1)), _leaf(_cut(x.teacher_TV, shard, 1))
    loss = ops.vocab_parallel_divergence(student, teacher, case.alpha, shard)
    return {"loss_T": loss}, {"student_TV": student}


def dense_divergence(case: Case, x: Inputs) -> Outcome:
    student = _leaf(x.student_TV.double())
    return {"loss_T": reference.divergence(student, x.teacher_TV.double(), case.alpha)}, {
        "student_TV": student
    }


def sharded_topk_divergence(case: Case, x: Inputs, shard: VocabShard) -> Outcome:
    student, teacher = _leaf(_cut(x.student_TV, shard, 1)), _leaf(_cut(x.teacher_TV, shard, 1))
    loss = ops.vocab_parallel_topk_divergence(student, teacher, case.alpha, case.k, shard, case.tail)
    return {"loss_T": loss}, {"student_TV": student}


def dense_topk_divergence(case: Case, x: Inputs) -> Outcome:
    student = _leaf(x.student_TV.double())
    loss = reference.topk_divergence(student, x.teacher_TV.double(), case.alpha, case.k, case.tail)
    return {"loss_T": loss}, {"student_TV": student}


def sharded_heads(case: Case, x: Inputs, shard: VocabShard) -> Outcome:
    """The chain of training: two heads, temperature, divergence and log-prob, down to hidden states."""
    hidden, weight = _leaf(x.hidden_TH), _leaf(_cut(x.weight_VH, shard, 0))
    student = ops.vocab_parallel_logits(hidden, weight, shard, case.temperature)
    teacher = ops.vocab_parallel_logits(x.teacher_hidden_TH, weight.detach(), shard, case.temperature)
    loss = ops.vocab_parallel_divergence(student, teacher, case.alpha, shard)
    log_prob = ops.vocab_parallel_log_prob(student, x.target_T, shard).log_prob_T
    return {"loss_T": loss, "log_prob_T": log_prob}, {"hidden_TH": hidden, "weight_VH": weight}


def dense_heads(case: Case, x: Inputs) -> Outcome:
    hidden, weight = _leaf(x.hidden_TH.double()), _leaf(x.weight_VH.double())
    student = hidden @ weight.t() / case.temperature
    teacher = x.teacher_hidden_TH.double() @ weight.detach().t() / case.temperature
    loss = reference.divergence(student, teacher, case.alpha)
    log_prob = reference.log_prob(student, x.target_T)
    return {"loss_T": loss, "log_prob_T": log_prob}, {"hidden_TH": hidden, "weight_VH": weight}


CHUNK = 2  # tokens: the cases have up to 7, so that chunks of all kinds occur


def _weights(case: Case) -> Tensor:
    """Per-token weights, one of them 0."""
    weights = torch.rand(case.tokens, generator=torch.Generator().manual_seed(case.seed + 2))
    weights[:1] = 0.0
    return weights.to(getattr(torch, case.dtype))


def _heads(case: Case, x: Inputs, shard: VocabShard) -> tuple[Tensor, Tensor, ops.LinearHead, ops.LinearHead]:
    """Leaves (hidden states, head weight) and both heads; the teacher's weight is another one."""
    hidden, weight = _leaf(x.hidden_TH), _leaf(_cut(x.weight_VH, shard, 0))
    theirs = _cut(x.weight_VH.flip(0), shard, 0)
    head = ops.LinearHead(weight, shard, case.temperature)
    return hidden, weight, head, ops.LinearHead(theirs, shard, case.temperature)


def _dense_heads(case: Case, x: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Leaves, and logits of both sides."""
    hidden, weight = _leaf(x.hidden_TH.double()), _leaf(x.weight_VH.double())
    teacher = x.teacher_hidden_TH.double() @ x.weight_VH.double().flip(0).t() / case.temperature
    return hidden, weight, hidden @ weight.t() / case.temperature, teacher


def _dense_form(student: Tensor, teacher: Tensor, case: Case, top: bool) -> Tensor:
    if top:
        return reference.topk_divergence(student, teacher, case.alpha, case.k, case.tail)
    return reference.divergence(student, teacher, case.alpha)


def _fused_divergence(case: Case, x: Inputs, shard: VocabShard, top: bool) -> Outcome:
    hidden, weight, head, theirs = _heads(case, x, shard)
    form = ops.Divergence(case.alpha, case.k if top else None, case.tail)
    teacher = ops.TeacherSide(x.teacher_hidden_TH, theirs, form)
    loss, divergence_T = ops.fused_linear_divergence(
        hidden, head, teacher, weights_T=_weights(case), chunk=CHUNK
    )
    return {"loss": loss, "divergence_T": divergence_T}, {"hidden_TH": hidden, "weight_VH": weight}


def _dense_weighted(case: Case, x: Inputs, top: bool) -> Outcome:
    hidden, weight, student, teacher = _dense_heads(case, x)
    divergence_T = _dense_form(student, teacher, case, top)
    loss = (_weights(case).double() * divergence_T).sum()
    outputs = {"loss": loss, "divergence_T": divergence_T.detach()}
    return outputs, {"hidden_TH": hidden, "weight_VH": weight}


def fused_divergence(case: Case, x: Inputs, shard: VocabShard) -> Outcome:
    return _fused_divergence(case, x, shard, top=False)


def fused_topk_divergence(case: Case, x: Inputs, shard: VocabShard) -> Outcome:
    return _fused_divergence(case, x, shard, top=True)


def dense_weighted_divergence(case: Case, x: Inputs) -> Outcome:
    return _dense_weighted(case, x, top=False)


def dense_weighted_topk_divergence(case: Case, x: Inputs) -> Outcome:
    return _dense_weighted(case, x, top=True)


def fused_log_prob(case: Case, x: Inputs, shard: VocabShard) -> Outcome:
    hidden, weight, head, _ = _heads(case, x, shard)
    found = ops.fused_linear_log_prob(hidden, head, x.target_T, entropy=True, chunk=CHUNK)
    return found._asdict(), {"hidden_TH": hidden, "weight_VH": weight}


def dense_scores(case: Case, x: Inputs) -> Outcome:
    hidden, weight, student, _ = _dense_heads(case, x)
    outputs = {
        "log_prob_T": reference.log_prob(student, x.target_T),
        "entropy_T": reference.entropy(student),
        "log_normaliser_T": student.logsumexp(dim=-1),
    }
    return outputs, {"hidden_TH": hidden, "weight_VH": weight}


def _mixed_loss(log_prob: Tensor, entropy: Tensor, divergence: Tensor | None, weights: Tensor) -> Tensor:
    """Not linear in anything, as a clipped policy loss is not; log-probs may be as low as -1e2."""
    loss = (weights * (log_prob / 20).exp() + (1 - weights) * entropy.square()).sum()
    return loss if divergence is None else loss + (weights * divergence.sqrt()).sum()


def fused_loss(case: Case, x: Inputs, shard: VocabShard) -> Outcome:
    """Everything in one: the last half of the tokens has a teacher."""
    hidden, weight, head, theirs = _heads(case, x, shard)
    weights, first = _weights(case), case.tokens // 2

    def token_loss(rows: slice, terms: ops.TokenTerms) -> Tensor:
        assert terms.log_prob_T is not None and terms.entropy_T is not None
        assert (terms.divergence_T is not None) == (rows.start >= first)
        shifted = None if terms.divergence_T is None else terms.divergence_T + 1.0
        return _mixed_loss(terms.log_prob_T, terms.entropy_T, shifted, weights[rows])

    teacher = ops.TeacherSide(x.teacher_hidden_TH[first:], theirs, ops.Divergence(case.alpha))
    loss = ops.fused_linear_loss(
        hidden, head, token_loss, target_T=x.target_T, entropy=True, teacher=teacher, chunk=CHUNK
    )
    return {"loss": loss}, {"hidden_TH": hidden, "weight_VH": weight}


def dense_loss(case: Case, x: Inputs) -> Outcome:
    hidden, weight, student, teacher = _dense_heads(case, x)
    first, weights = case.tokens // 2, _weights(case).double()
    log_prob, entropy = reference.log_prob(student, x.target_T), reference.entropy(student)
    shifted = reference.divergence(student[first:], teacher[first:], case.alpha) + 1.0
    loss = _mixed_loss(log_prob, entropy, None, weights) + (weights[first:] * shifted.sqrt()).sum()
    return {"loss": loss}, {"hidden_TH": hidden, "weight_VH": weight}


SHARDED: dict[str, Callable[[Case, Inputs, VocabShard], Outcome]] = {
    "log_prob": sharded_log_prob,
    "gather": sharded_gather,
    "divergence": sharded_divergence,
    "topk_divergence": sharded_topk_divergence,
    "heads": sharded_heads,
    "fused_divergence": fused_divergence,
    "fused_topk_divergence": fused_topk_divergence,
    "fused_log_prob": fused_log_prob,
    "fused_loss": fused_loss,
}
DENSE: dict[str, Callable[[Case, Inputs], Outcome]] = {
    "log_prob": dense_log_prob,
    "gather": dense_gather,
    "divergence": dense_divergence,
    "topk_divergence": dense_topk_divergence,
    "heads": dense_heads,
    "fused_divergence": dense_weighted_divergence,
    "fused_topk_divergence": dense_weighted_topk_divergence,
    "fused_log_prob": dense_scores,
    "fused_loss": dense_loss,
}


def _collect(case: Case, outcome: Outcome) -> Results:
    """Outputs and gradients of a weighted sum of them; the weights are the same for both sides and all
    ranks.
    """
    outputs, leaves = outcome
    generator = torch.Generator().manual_seed(case.seed + 1)
    weighted = []
    for value in outputs.values():
        weights = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        if value.requires_grad:
            weighted.append((value * weights.to(value.dtype)).sum())
    torch.stack(weighted).sum().backward()
    gradients = {f"grad {name}": leaf.grad for name, leaf in leaves.items()}
    return {name: value.detach().numpy() for name, value in {**outputs, **gradients}.items()}


def run_sharded(rank: int, world: int, operation: str, batch: list[Case]) -> list[Results]:
    """Worker: the results of this rank for every case."""
    group = dist.group.WORLD if world > 1 else None
    results = []
    for case in batch:
        shard = VocabShard(group, case.vocab_size, case.padded_size(world))
        results.append(_collect(case, SHARDED[operation](case, make_inputs(case), shard)))
    if world > 1:  # gloo moves no bytes for empty tensors: do not tear down while another rank still connects
        dist.barrier()
    return results


def run_dense(operation: str, case: Case) -> Results:
    """The reference's results."""
    return _collect(case, DENSE[operation](case, make_inputs(case)))


def largest_logit(case: Case) -> float:
    """Largest absolute logit of the case, of both sides and before or after the heads."""
    x = make_inputs(case)
    heads = [item @ x.weight_VH.t() / case.temperature for item in (x.hidden_TH, x.teacher_hidden_TH)]
    logits = torch.cat([torch.zeros(1), *(item.flatten() for item in (x.student_TV, x.teacher_TV, *heads))])
    return logits.abs().max().item()


def leverage(name: str, case: Case) -> float:
    """How far the product with the other factor spreads a rounding of the logits' gradient (at random, so in
    the Euclidean norm): a column of the head for hidden states, a column of hidden states for the head."""
    x = make_inputs(case)
    factor = {"grad hidden_TH": x.weight_VH, "grad weight_VH": x.hidden_TH}.get(name)
    if factor is None or factor.numel() == 0:
        return 1.0
    return max(1.0, factor.norm(dim=0).max().item() / case.temperature)


def assert_matches(name: str, actual: np.ndarray, expected: np.ndarray, case: Case) -> None:
    """Two terms. 1e-5 of the tensor's largest entry: smaller entries are differences of such. (float64: 1e-8,
    because the reference forms a tail of 1e-7 as 1 - mass and so knows it to 1e-9 only.)

    And 8 roundings of the largest logit: a logit of size 30 is rounded by 30 x 6e-8 when the maximum and the
    normaliser are subtracted, so that every probability, and every gradient, carries this error relative to
    1, however small the result (a divergence of equal distributions is 0). Behind heads, `leverage` times.
    """
    assert actual.shape == expected.shape, (name, actual.shape, expected.shape, case)
    if actual.size == 0:
        return
    relative = 1e-5 if case.dtype == "float32" else 1e-8
    rounding = float(np.finfo(case.dtype).eps) / 2
    noise = 8 * rounding * max(1.0, largest_logit(case)) * leverage(name, case)
    bound = relative * np.abs(expected).max() + noise
    error = np.abs(actual.astype(np.float64) - expected).max()
    assert error <= bound, f"{name}: error {error:.3e} > {bound:.3e} in {case}"


def assemble(name: str, parts: list[np.ndarray], case: Case) -> np.ndarray:
    """The whole tensor from all ranks: gradients of shards joined and stripped of padding, all else
    identical.
    """
    if name in ("grad student_TV", "grad weight_VH"):
        axis = 1 if name == "grad student_TV" else 0
        real, padding = np.split(np.concatenate(parts, axis=axis), [case.vocab_size], axis=axis)
        assert not padding.any(), f"{name}: padding got gradient in {case}"
        return real
    for part in parts[1:]:
        np.testing.assert_array_equal(part, parts[0], err_msg=f"{name} differs between ranks in {case}")
    return parts[0]


def check(operation: str, world: int, batch: list[Case]) -> None:
    """Run all cases on `world` ranks in one call and compare every output and gradient with the reference."""
    by_rank = (
        [run_sharded(0, 1, operation, batch)]
        if world == 1
        else run_ranks(world, run_sharded, operation, batch)
    )
    for case, *parts in zip(batch, *by_rank, strict=True):
        expected = run_dense(operation, case)
        assert expected.keys() == parts[0].keys()
        for name, value in expected.items():
            assert_matches(name, assemble(name, [part[name] for part in parts], case), value, case)


def large_saved_tensors(function: Callable[[Tensor], Tensor]) -> int:
    """How many tensors as large as (3, 50) logits autograd keeps for the backward of `function`."""
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        function(torch.randn(3, 50, requires_grad=True)).sum().backward()
    return len({tensor.data_ptr() for tensor in kept if tensor.numel() >= 150})


EDGES = [
    Case(vocab_size=1, k=1),
    Case(vocab_size=3, k=3, padding=3, tokens=2),  # the last ranks hold nothing but padding
    Case(vocab_size=5, k=5, padding=7, alpha=0.0, dtype="float64"),
    Case(tokens=0, vocab_size=9),
    Case(vocab_size=16, k=15, alpha=1.0),  # no padding; k above the size of any shard
    Case(vocab_size=33, k=10, alpha=0.2, temperature=0.6, ties=True, scale=1.0),
    Case(vocab_size=40, k=3, scale=100.0, tail=False),
    Case(vocab_size=301, tokens=7, k=100, padding=2, alpha=0.7, temperature=1.7),
]
"""Run for every operation and layout, whatever hypothesis draws."""
