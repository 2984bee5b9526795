"""Which prompts a step trains on: a pure function of (seed, position), so that resuming is exact.

Position = number of prompts consumed since the start of training. Nothing else is state.

Without weights all prompts form one epoch: every prompt once, in an order reshuffled for each epoch. With
weights every source has epochs of its own, and positions are dealt to the sources in blocks of 1000: in
every block source s gets ``1000 * weight_s / sum(weights)`` positions (largest remainders decide rounding;
at least one if its weight is positive), spread evenly over the block, so each batch is close to the weights
and each block exact to 0.1 %.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from megatron_srpo.data.types import Prompt
from megatron_srpo.errors import DataError

_BLOCK = 1000


class PromptSampler:
    """Deals prompts to steps.

    Args:
        prompts: the training prompts.
        seed: seed of all epochs' orders.
        shuffle: False keeps the given order in every epoch.
        weights: weight by source name; None mixes in proportion to the sources' sizes.

    Raises:
        DataError: there are no prompts, or a weighted source has none.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        seed: int,
        shuffle: bool = True,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        if not prompts:
            raise DataError("there are no training prompts; add a source under data.train")
        self.prompts = list(prompts)
        self.seed = seed
        self.shuffle = shuffle
        self._groups = _group_by_source(self.prompts, weights)
        self._pattern = _deal([weight for weight, _ in self._groups])
        self._quotas = np.bincount(self._pattern, minlength=len(self._groups))
        self._ranks = _ranks_within_groups(self._pattern)
        self._order = lru_cache(maxsize=2 * len(self._groups))(self._epoch_order)

    def __len__(self) -> int:
        """Number of prompts in one epoch of all sources."""
        return len(self.prompts)

    def batch(self, step: int, size: int) -> list[Prompt]:
        """Return the ``size`` prompts of step ``step`` (from 0), all steps being of this size."""
        return self.batch_at(step * size, size)

    def batch_at(self, position: int, size: int) -> list[Prompt]:
        """Return the ``size`` prompts that follow after ``position`` consumed ones.

        A prompt occurs twice only where the batch reaches into the next epoch.
        """
        if position < 0 or size < 1:
            raise DataError(
                f"no batch of {size} prompts at position {position}; both must be counted from 0 upwards"
            )
        return [self.prompts[self._index(number)] for number in range(position, position + size)]

    def _index(self, position: int) -> int:
        block, offset = divmod(position, len(self._pattern))
        group = int(self._pattern[offset])
        members = self._groups[group][1]
        drawn = block * int(self._quotas[group]) + int(self._ranks[offset])
        epoch, place = divmod(drawn, len(members))
        return int(members[self._order(group, epoch)[place]])

    def _epoch_order(self, group: int, epoch: int) -> NDArray[np.int64]:
        count = len(self._groups[group][1])
        if not self.shuffle:
            return np.arange(count)
        # Sorting raw generator output, because NumPy promises the stream of a bit generator across versions
        # but not the result of Generator.permutation.
        keys = np.random.PCG64(np.random.SeedSequence([self.seed, group, epoch])).random_raw(count)
        return np.argsort(keys, kind="stable")


def _group_by_source(
    prompts: list[Prompt], weights: Mapping[str, float] | None
) -> list[tuple[float, NDArray[np.int64]]]:
    """Return (weight, indices of prompts) for each group that is drawn from; without weights, one group."""
    if weights is None:
        return [(1.0, np.arange(len(prompts)))]
    unweighted = {prompt.source for prompt in prompts} - weights.keys()
    if unweighted:
        raise DataError(f"source {sorted(unweighted)[0]!r} has prompts but no weight among {sorted(weights)}")
    groups = []
    for source, weight in weights.items():
        members = [index for index, prompt in enumerate(prompts) if prompt.source == source]
        if weight > 0 and not members:
            raise DataError(f"source {source!r} has weight {weight} but no prompts")
        if weight > 0:
            groups.append((weight, np.array(members)))
    if not groups:
        raise DataError("every source's weight is 0; give at least one a positive weight")
    return groups


def _deal(weights: Sequence[float]) -> NDArray[np.int64]:
    """Return the group of every position in a block, each group's positions spread evenly."""
    if len(weights) == 1:
        return np.zeros(1, dtype=np.int64)
    shares = np.array(weights) / np.sum(weights) * max(_BLOCK, 2 * len(weights))
    quotas = np.maximum(np.floor(shares), 1).astype(np.int64)
    remainders = np.argsort(np.floor(shares) - shares, kind="stable")
    for group in remainders[: max(0, round(shares.sum()) - int(quotas.sum()))]:
        quotas[group] += 1
    places = np.concatenate([(np.arange(quota) + 0.5) / quota for quota in quotas])
    groups = np.repeat(np.arange(len(quotas)), quotas)
    return groups[np.argsort(places, kind="stable")]


def _ranks_within_groups(pattern: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for every position how many earlier positions of the block belong to the same group."""
    ranks = np.zeros(len(pattern), dtype=np.int64)
    for group in range(int(pattern.max()) + 1):
        mine = pattern == group
        ranks[mine] = np.arange(int(mine.sum()))
    return ranks
