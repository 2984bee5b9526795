"""Drawing the next token of each row from its logits.

Shape suffixes: B rows, V vocabulary (``config.vocab_size``), N blocks of W entries, K leading candidates.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_srpo.rollout.seeds import uniforms
from megatron_srpo.rollout.types import SamplingParams

#: Rows are handled in groups of at most this many logits: bounds the float64 sums of a large vocabulary.
MAX_LOGITS = 1 << 24

#: Entries summed at once by :func:`inverse_cdf`.
BLOCK = 64

#: Candidates looked at first when a nucleus is searched; most nuclei are smaller, and a full sort is slow.
FIRST_CANDIDATES = 8


def sample_tokens(
    logits_BV: Tensor, seeds_B: Tensor, position: int, sampling: SamplingParams, vocab_limit: int
) -> tuple[Tensor, Tensor]:
    """Draw one token per row and report its log-prob.

    Log-probs are normalised over all V entries, as the trainer normalises them; entries from ``vocab_limit``
    on (padding that no token of the tokenizer uses) are never drawn.

    Args:
        logits_BV: raw logits, any float type.
        seeds_B: int64, request seeds.
        position: position of the token in its response.
        sampling: temperature (0: greedy, log-probs at temperature 1) and top-p.
        vocab_limit: number of entries that may be drawn.

    Returns:
        int64 tokens_B and float32 log_probs_B.
    """
    rows = max(1, MAX_LOGITS // logits_BV.shape[-1])
    parts = [
        _sample_rows(logits, seeds, position, sampling, vocab_limit)
        for logits, seeds in zip(logits_BV.split(rows), seeds_B.split(rows), strict=True)
    ]
    return torch.cat([tokens for tokens, _ in parts]), torch.cat([log_probs for _, log_probs in parts])


def _sample_rows(
    logits_BV: Tensor, seeds_B: Tensor, position: int, sampling: SamplingParams, vocab_limit: int
) -> tuple[Tensor, Tensor]:
    logits_BV = logits_BV.float()
    if sampling.temperature not in (0.0, 1.0):
        logits_BV = logits_BV / sampling.temperature
    log_probs_BV = torch.log_softmax(logits_BV, dim=-1)
    if sampling.temperature == 0.0:
        tokens_B = log_probs_BV[:, :vocab_limit].argmax(dim=-1)
    else:
        probs_BV = log_probs_BV.exp()
        probs_BV[:, vocab_limit:] = 0.0
        if sampling.top_p < 1.0:
            cut_B = nucleus_cut(probs_BV, sampling.top_p)
            probs_BV = probs_BV.where(probs_BV >= cut_B[:, None], 0.0)
        tokens_B = inverse_cdf(probs_BV, uniforms(seeds_B, position))
    return tokens_B, log_probs_BV.gather(-1, tokens_B[:, None])[:, 0]


def inverse_cdf(weights_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """Return per row the first index whose cumulative weight exceeds ``uniform * total``.

    The running sums are float64, first over blocks of entries and then inside the block that was hit: summing
    is several times faster than a running sum over the whole vocabulary. An entry of weight zero is never
    returned. The weights need not sum to one.
    """
    weights_BV = F.pad(weights_BV, (0, -weights_BV.shape[-1] % BLOCK))
    weights_BNW = weights_BV.view(len(weights_BV), -1, BLOCK)
    block_BN = weights_BNW.sum(dim=-1).double()
    ends_BN = block_BN.cumsum(dim=-1)
    hit_B, target_B = _first_above(ends_BN, uniforms_B * ends_BN[:, -1])
    rows = torch.arange(len(weights_BV), device=weights_BV.device)
    offset_B = target_B - (ends_BN[rows, hit_B] - block_BN[rows, hit_B])
    inside_BW = weights_BNW[rows, hit_B].cumsum(dim=-1, dtype=torch.float64)
    return hit_B * BLOCK + _first_above(inside_BW, offset_B)[0]


def _first_above(cumulative_BN: Tensor, target_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first index whose running sum exceeds the target, and the target held inside [0, total).

    Rounding may put a target at the total, which nothing exceeds, or slightly below zero.
    """
    total_B = cumulative_BN[:, -1]
    target_B = torch.minimum(target_B.clamp(min=0.0), torch.nextafter(total_B, torch.zeros_like(total_B)))
    return torch.searchsorted(cumulative_BN, target_B[:, None], right=True)[:, 0], target_B


def nucleus_cut(probs_BV: Tensor, top_p: float) -> Tensor:
    """Return per row the probability of the last entry of the nucleus.

    The nucleus is the shortest run of the most probable entries whose share of the row's mass reaches
    ``top_p``; entries as probable as its last one belong to it too, so that no sorting order decides ties.
    """
    needed_B = top_p * probs_BV.sum(dim=-1, dtype=torch.float64)
    cut_B = torch.empty_like(probs_BV[:, 0])
    open_rows = torch.arange(len(probs_BV), device=probs_BV.device)
    candidates = FIRST_CANDIDATES
    while len(open_rows):
        candidates = min(candidates, probs_BV.shape[-1])
        top_BK = probs_BV[open_rows].topk(candidates, dim=-1).values
        cumulative_BK = top_BK.cumsum(dim=-1, dtype=torch.float64)
        last_B = (cumulative_BK < needed_B[open_rows, None]).sum(dim=-1)
        cut_B[open_rows] = top_BK.gather(-1, last_B.clamp(max=candidates - 1)[:, None])[:, 0]
        if candidates == probs_BV.shape[-1]:
            break  # what rounding left uncovered keeps every entry down to the least probable one
        open_rows = open_rows[last_B >= candidates]
        candidates *= 16
    return cut_B
