"""One batch of responses, decoded together by a transformers model.

Prompts that are equal are prefilled once. The columns of the key-value cache are laid out as

    prompt tokens | hidden padding up to the longest prompt | response tokens

so that the prefill needs no mask (padding on the right is invisible to causal attention) and every row writes
its response into the same column. Positions are given explicitly; the hole has none.

Shape suffixes: N requests, B rows still in the batch, P distinct prompts, L columns, T token positions,
H hidden, V vocabulary, S stop tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from megatron_srpo.rollout.kv_cache import BufferedLayer
from megatron_srpo.rollout.sampling import sample_tokens
from megatron_srpo.rollout.types import Request, SamplingParams
from megatron_srpo.rollout.vocabulary import Vocabulary

#: Most tokens (padding included) of one prefill forward: bounds the memory of its activations.
PREFILL_TOKENS = 8192

#: Finished rows leave the batch once the live ones are fewer than this share of it: leaving copies the cache.
COMPACT_BELOW = 0.75


@dataclass(frozen=True)
class Sampled:
    """Responses of N requests, in their order: tokens, log-probs, and whether each one stopped."""

    tokens: list[list[int]]
    log_probs: list[list[float]]
    stopped: list[bool]


class DecodeBatch:
    """Decodes one batch to its end. The key-value cache holds at most ``len(requests)`` rows."""

    def __init__(
        self,
        model: PreTrainedModel,
        requests: Sequence[Request],
        sampling: SamplingParams,
        vocabulary: Vocabulary,
    ) -> None:
        """Take requests whose equal prompts lie side by side."""
        self.model, self.sampling, self.vocabulary = model, sampling, vocabulary
        self.device = model.device
        self.prompts = list(dict.fromkeys(request.prompt_tokens for request in requests))
        index = {prompt: place for place, prompt in enumerate(self.prompts)}
        self.prompt_of_B = torch.tensor(
            [index[request.prompt_tokens] for request in requests], device=self.device
        )
        self.width = max(len(prompt) for prompt in self.prompts)
        self.rows_B = torch.arange(len(requests), device=self.device)
        self.seeds_B = torch.tensor([request.seed for request in requests], device=self.device)
        self.lengths_B = torch.tensor(
            [len(request.prompt_tokens) for request in requests], device=self.device
        )
        self.alive_B = torch.ones(len(requests), dtype=torch.bool, device=self.device)
        self.stop_S = torch.tensor(vocabulary.stop_tokens, dtype=torch.long, device=self.device)

    @torch.inference_mode()
    def run(self, on_finished: Callable[[int], None]) -> Sampled:
        """Decode; ``on_finished`` is called with the number of responses that ended, whenever some do."""
        count, most = len(self.rows_B), self.sampling.max_new_tokens
        tokens_NT = torch.zeros(count, most, dtype=torch.long, device=self.device)
        log_probs_NT = torch.zeros(count, most, device=self.device)
        ended_N = torch.full((count,), most, device=self.device)
        stopped_N = torch.zeros(count, dtype=torch.bool, device=self.device)
        logits_BV = self._prefill()
        for position in range(most):
            tokens_B, log_probs_B = sample_tokens(
                logits_BV, self.seeds_B, position, self.sampling, self.vocabulary.limit
            )
            tokens_NT[self.rows_B, position] = tokens_B
            log_probs_NT[self.rows_B, position] = log_probs_B
            stops_B = torch.isin(tokens_B, self.stop_S) & self.alive_B
            ended_N[self.rows_B[stops_B]] = position + 1
            stopped_N[self.rows_B[stops_B]] = True
            self.alive_B &= ~stops_B
            alive = self._report(stops_B, on_finished)
            if alive == 0 or position + 1 == most:
                break
            logits_BV = self._step(self._compact(tokens_B, alive), position)
        on_finished(alive)
        return _cut(tokens_NT, log_probs_NT, ended_N, stopped_N)

    def _report(self, stops_B: Tensor, on_finished: Callable[[int], None]) -> int:
        """Pass on how many rows stopped; return how many are alive."""
        stops, alive = torch.stack([stops_B.sum(), self.alive_B.sum()]).tolist()
        on_finished(stops)
        return alive

    def _prefill(self) -> Tensor:
        """Fill the cache with the prompts, each computed once; return the logits of the first tokens."""
        self.cache = Cache(layers=[])
        hidden_PH: list[Tensor] = []
        for first, last in prefill_chunks([len(prompt) for prompt in self.prompts]):
            hidden_PTH, chunk = self._prefill_chunk(self.prompts[first:last])
            ends = [len(prompt) - 1 for prompt in self.prompts[first:last]]
            hidden_PH.append(hidden_PTH[range(last - first), ends])
            self._store(chunk, first, last)
        logits_PV = self._head(torch.cat(hidden_PH))
        columns = torch.arange(self.width + self.sampling.max_new_tokens, device=self.device)
        hidden_BL = (columns >= self.lengths_B[:, None]) & (columns < self.width)
        self.mask_BL = torch.zeros_like(hidden_BL, dtype=self.model.dtype).masked_fill_(
            hidden_BL, float("-inf")
        )
        return logits_PV[self.prompt_of_B]

    def _prefill_chunk(self, prompts: list[tuple[int, ...]]) -> tuple[Tensor, Cache]:
        width = max(len(prompt) for prompt in prompts)
        padded = [prompt + (0,) * (width - len(prompt)) for prompt in prompts]
        cache = DynamicCache()
        out = self.model.base_model(
            input_ids=torch.tensor(padded, device=self.device), past_key_values=cache, use_cache=True
        )
        return out.last_hidden_state, cache

    def _store(self, chunk: Cache, first: int, last: int) -> None:
        """Copy the prompts ``first`` to ``last`` from the prefill's cache to all rows that continue them."""
        rows = torch.nonzero((self.prompt_of_B >= first) & (self.prompt_of_B < last))[:, 0]
        source = self.prompt_of_B[rows] - first
        for number, layer in enumerate(chunk.layers):
            if number == len(self.cache.layers):
                self.cache.layers.append(BufferedLayer(len(self.rows_B), self.width, layer.keys))
            width = layer.keys.shape[2]
            self.cache.layers[number].keys[rows, :, :width] = layer.keys[source]
            self.cache.layers[number].values[rows, :, :width] = layer.values[source]

    def _step(self, tokens_B: Tensor, position: int) -> Tensor:
        """Feed the token at ``position`` of every row; return the logits of the next one."""
        columns = self.width + position + 1
        out = self.model.base_model(
            input_ids=tokens_B[:, None],
            position_ids=(self.lengths_B + position)[:, None],
            attention_mask=self.mask_BL[:, None, None, :columns],
            past_key_values=self.cache,
            use_cache=True,
        )
        return self._head(out.last_hidden_state[:, -1])

    def _head(self, hidden_BH: Tensor) -> Tensor:
        return self.model.get_output_embeddings()(hidden_BH)

    def _compact(self, tokens_B: Tensor, alive: int) -> Tensor:
        """Drop finished rows when there are enough of them; return the tokens of the rows that stay."""
        if alive >= COMPACT_BELOW * len(self.rows_B):
            return tokens_B
        keep = torch.nonzero(self.alive_B)[:, 0]
        self.cache.batch_select_indices(keep)
        self.rows_B, self.seeds_B, self.lengths_B = (
            self.rows_B[keep],
            self.seeds_B[keep],
            self.lengths_B[keep],
        )
        self.mask_BL, self.alive_B = self.mask_BL[keep], self.alive_B[keep]
        return tokens_B[keep]


def prefill_chunks(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Cut prompts into runs [first, last) of at most ``PREFILL_TOKENS`` padded tokens (or one prompt)."""
    chunks: list[tuple[int, int]] = []
    first, width = 0, 0
    for place, length in enumerate(lengths):
        if place > first and max(width, length) * (place + 1 - first) > PREFILL_TOKENS:
            chunks.append((first, place))
            first, width = place, 0
        width = max(width, length)
    return [*chunks, (first, len(lengths))]


def _cut(tokens_NT: Tensor, log_probs_NT: Tensor, ended_N: Tensor, stopped_N: Tensor) -> Sampled:
    """Cut every row at its end. Rows that stopped went on decoding until they were dropped."""
    ends = ended_N.tolist()
    return Sampled(
        tokens=[row[:end] for row, end in zip(tokens_NT.tolist(), ends, strict=True)],
        log_probs=[row[:end] for row, end in zip(log_probs_NT.tolist(), ends, strict=True)],
        stopped=stopped_N.tolist(),
    )
