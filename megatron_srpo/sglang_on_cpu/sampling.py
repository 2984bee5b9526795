"""Seeds per request: the token at one position depends on the request's seed, never on its batch.

SGLang honours ``sampling_seed`` only together with kernels that exist for CUDA. Here a request with a seed
draws by inverse CDF from one uniform number per token, a hash of the seed and the token's place in the
response. It is the same number as ``megatron_srpo.rollout.seeds.uniforms`` gives, so that at top-p 1 both
engines draw the same response from the same seed, up to rounding of the log-probs.

Shape suffixes: B rows, V vocabulary.
"""

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from megatron_srpo.splitmix import GOLDEN_GAMMA, MASK, mix, mix_integer, signed, unit_interval


def add_seeds(info: Any, cls: type, batch: Any, vocab_size: int) -> Any:
    """After ``SamplingBatchInfo.from_schedule_batch``: hand each row's random state to the sampler.

    The state is chosen so that adding ``(position + 1) * gamma``, with SGLang's position counted from the
    start of the prompt, gives the state of the response's token. A request without a seed draws one, once.
    """
    states = []
    for request in batch.reqs:
        parameters = request.sampling_params
        if parameters.sampling_seed is None:
            parameters.sampling_seed = random.getrandbits(63)
        states.append(start_state(parameters.sampling_seed, len(request.origin_input_ids)))
    info.sampling_seed = torch.tensor(states, dtype=torch.int64)
    return info


def start_state(seed: int, prompt_tokens: int) -> int:
    """Return ``mix(seed) - (prompt_tokens - 1) * gamma`` as an int64.

    SGLang samples the first token of a response at the position of the prompt's last token.
    """
    return signed((mix_integer(seed & MASK) - (prompt_tokens - 1) * GOLDEN_GAMMA) & MASK)


def uniforms(states_B: Tensor, positions_B: Tensor) -> Tensor:
    """Return one float64 number in [0, 1) per row.

    Args:
        states_B: int64, from :func:`start_state`.
        positions_B: place in prompt and response together of the token that was fed last.
    """
    return unit_interval(mix(states_B + (positions_B.long() + 1) * signed(GOLDEN_GAMMA)))


def sample(
    original: Callable[..., Tensor],
    probs_BV: Tensor,
    sampling_seed: Tensor | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """Around ``sampling_from_probs_torch``: int32 tokens_B."""
    if sampling_seed is None or positions is None:
        return original(probs_BV, sampling_seed, positions)
    return inverse_cdf(probs_BV, uniforms(sampling_seed, positions))


def sample_filtered(
    original: Callable[..., Any],
    probs_BV: Tensor,
    top_ks_B: Tensor,
    top_ps_B: Tensor,
    min_ps_B: Tensor,
    need_min_p_sampling: bool,
    sampling_seed: Tensor | None,
    positions: Tensor,
    **options: Any,
) -> Any:
    """Around ``top_k_top_p_min_p_sampling_from_probs_torch``: int32 tokens_B.

    SGLang takes this way for the whole batch as soon as one request in it has a filter. Drawing in the order
    of the vocabulary, as :func:`sample` does, keeps the other requests' tokens what they would be without it.
    """
    if sampling_seed is None or options.get("return_filtered_probs"):
        return original(
            probs_BV, top_ks_B, top_ps_B, min_ps_B, need_min_p_sampling, sampling_seed, positions, **options
        )
    min_ps_B = min_ps_B if need_min_p_sampling else torch.zeros_like(min_ps_B)
    kept_BV = filtered(probs_BV, top_ks_B, top_ps_B, min_ps_B)
    return inverse_cdf(kept_BV, uniforms(sampling_seed, positions))


def filtered(probs_BV: Tensor, top_ks_B: Tensor, top_ps_B: Tensor, min_ps_B: Tensor) -> Tensor:
    """Return the probabilities with zeros where a row's top-k, top-p or min-p excludes an entry."""
    sorted_BV, order_BV = probs_BV.sort(dim=-1, descending=True, stable=True)
    before_BV = sorted_BV.cumsum(dim=-1, dtype=torch.float64) - sorted_BV
    ranks_V = torch.arange(sorted_BV.shape[-1])
    drop_BV = ranks_V >= top_ks_B[:, None]
    # Rounding of the running sum must not shorten a row that asks for everything.
    drop_BV |= (before_BV > top_ps_B[:, None]) & (top_ps_B[:, None] < 1.0)
    drop_BV |= sorted_BV < sorted_BV[:, :1] * min_ps_B[:, None]
    return torch.zeros_like(probs_BV).scatter_(-1, order_BV, sorted_BV.masked_fill(drop_BV, 0.0))


def inverse_cdf(weights_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """Return per row (int32) the first index whose running sum exceeds ``uniform * total``.

    An entry of weight zero is never returned; the weights need not sum to one.
    """
    ends_BV = weights_BV.cumsum(dim=-1, dtype=torch.float64)
    total_B = ends_BV[:, -1]
    below_B = torch.nextafter(total_B, torch.zeros_like(total_B))  # rounding may put a target at the total
    target_B = torch.minimum(uniforms_B * total_B, below_B)
    return torch.searchsorted(ends_BV, target_B[:, None], right=True)[:, 0].to(torch.int32)
