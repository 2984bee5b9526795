"""Dense references for tests/ops: definitions written out with plain torch autograd on whole float64 logits
(T, V).

They share no code and no algebra with `megatron_srpo.ops`: no sharding, no max trick of our own, gradients
by autograd.
"""

import torch
from torch import Tensor


def log_prob(logits: Tensor, target: Tensor) -> Tensor:
    """(T, V), (T,) -> (T,)."""
    return torch.log_softmax(logits, dim=-1)[torch.arange(len(target)), target]


def entropy(logits: Tensor) -> Tensor:
    """- sum p log p; logits must be finite."""
    log_p = torch.log_softmax(logits, dim=-1)
    return -(log_p.exp() * log_p).sum(dim=-1)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) from log-probabilities over the last dimension."""
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def divergence_of_log_probs(log_s: Tensor, log_t: Tensor, alpha: float) -> Tensor:
    """Section 4 of the specification, word by word."""
    if alpha == 0:
        return kl(log_t, log_s)
    if alpha == 1:
        return kl(log_s, log_t)
    weights = torch.tensor([1 - alpha, alpha], dtype=torch.float64).log()
    log_m = torch.logsumexp(torch.stack([log_s + weights[0], log_t + weights[1]]), dim=0)
    return (1 - alpha) * kl(log_s, log_m) + alpha * kl(log_t, log_m)


def divergence(student: Tensor, teacher: Tensor, alpha: float) -> Tensor:
    """(T, V) logits of both sides -> (T,)."""
    return divergence_of_log_probs(student.log_softmax(dim=-1), teacher.log_softmax(dim=-1), alpha)


def topk_ids(logits: Tensor, k: int) -> Tensor:
    """Ids of the k largest logits per row by Python's sort: falling value, then rising id."""
    rows = [sorted(range(len(row)), key=lambda i: (-row[i], i))[:k] for row in logits.tolist()]
    return torch.tensor(rows, dtype=torch.long).reshape(len(logits), k)


def topk_divergence(student: Tensor, teacher: Tensor, alpha: float, k: int, tail: bool) -> Tensor:
    """Top-k of the student, with a tail bucket or renormalised, as the specification words it."""
    ids = topk_ids(student.detach(), k)
    log_s = student.log_softmax(dim=-1).gather(1, ids)
    log_t = teacher.log_softmax(dim=-1).gather(1, ids)
    if tail:
        return divergence_of_log_probs(_add_tail(log_s), _add_tail(log_t), alpha)
    return divergence_of_log_probs(log_s.log_softmax(dim=-1), log_t.log_softmax(dim=-1), alpha)


def _add_tail(log_p: Tensor) -> Tensor:
    log_mass = torch.clamp(torch.logsumexp(log_p, dim=-1, keepdim=True), max=-1e-7)
    return torch.cat([log_p, torch.log(-torch.expm1(log_mass))], dim=-1)
