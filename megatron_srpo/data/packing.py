"""Putting sequences together: into micro-batches of bounded size, and onto equally loaded ranks."""

import heapq
from bisect import insort
from collections.abc import Sequence

from megatron_srpo.errors import ConfigError, DataError

#: Sequence length at which attention costs as much as everything linear in the length. For a layer with
#: hidden size h: about 24 h^2 T operations in projections and 2 h T^2 in causal attention, hence 12 h; 24576
#: is h = 2048.
LINEAR_TOKENS = 24576


def pack(lengths: Sequence[int], capacity: int, key: str = "training.micro_batch_tokens") -> list[list[int]]:
    """Pack sequences into micro-batches of at most ``capacity`` tokens (first-fit decreasing).

    Every index occurs exactly once; at most 11/9 of the optimal number of micro-batches plus one are used
    (Dosa 2007). Equal input gives equal output.

    Args:
        lengths: tokens of each sequence.
        capacity: most tokens in one micro-batch.
        key: configuration key of the capacity, for the error message.

    Returns:
        Indices into ``lengths`` for each micro-batch, ascending inside; the longest sequences come first.

    Raises:
        ConfigError: one sequence alone is longer than the capacity.
        DataError: a length is not positive.
    """
    _check_lengths(lengths)
    if lengths and max(lengths) > capacity:
        raise ConfigError(
            f"a sequence of {max(lengths)} tokens does not fit into {key} = {capacity}; "
            f"raise {key} to at least {max(lengths)}, or shorten prompts or responses"
        )
    bins: list[list[int]] = []
    free: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda item: (-lengths[item], item)):
        place = next((number for number, room in enumerate(free) if room >= lengths[index]), len(bins))
        if place == len(bins):
            bins.append([])
            free.append(capacity)
        insort(bins[place], index)
        free[place] -= lengths[index]
    return bins


def pack_evenly(
    lengths: Sequence[int],
    capacity: int,
    key: str = "training.micro_batch_tokens",
    linear_tokens: float = LINEAR_TOKENS,
) -> list[list[int]]:
    """Pack as :func:`pack` does, into as many micro-batches, but of nearly equal cost where room allows.

    In a pipeline, the slowest micro-batch sets the pace. Arguments and errors are those of :func:`pack` and
    :func:`balance`.
    """
    packed = pack(lengths, capacity, key)
    even = _spread(lengths, capacity, len(packed), linear_tokens)

    def dearest(bins: list[list[int]]) -> float:
        return max(sum(sequence_cost(lengths[index], linear_tokens) for index in members) for members in bins)

    return even if even and dearest(even) < dearest(packed) else packed


def _spread(
    lengths: Sequence[int], capacity: int, count: int, linear_tokens: float
) -> list[list[int]] | None:
    """Put the longest sequence left where least has been put yet; None where that runs out of room."""
    bins: list[list[int]] = [[] for _ in range(count)]
    free, cost = [capacity] * count, [0.0] * count
    for index in sorted(range(len(lengths)), key=lambda item: (-lengths[item], item)):
        fitting = [number for number, room in enumerate(free) if room >= lengths[index]]
        if not fitting:
            return None
        place = min(fitting, key=lambda number: (cost[number], number))
        insort(bins[place], index)
        free[place] -= lengths[index]
        cost[place] += sequence_cost(lengths[index], linear_tokens)
    return bins


def balance(lengths: Sequence[int], bins: int, linear_tokens: float = LINEAR_TOKENS) -> list[list[int]]:
    """Distribute sequences over ``bins`` ranks or micro-batches of nearly equal cost (longest first).

    Every index occurs exactly once; no bin stays empty while there are at least ``bins`` sequences; the most
    expensive bin costs at most 4/3 - 1/(3 bins) of the optimum (Graham 1969). Equal input gives equal output.

    Args:
        lengths: tokens of each sequence.
        bins: number of ranks or micro-batches.
        linear_tokens: see :data:`LINEAR_TOKENS`.

    Returns:
        Indices into ``lengths`` for each bin, ascending inside.

    Raises:
        DataError: a length is not positive or there is no bin.
    """
    _check_lengths(lengths)
    if bins < 1:
        raise DataError(f"sequences cannot be distributed over {bins} bins")
    heap = [(0.0, 0, number) for number in range(bins)]
    result: list[list[int]] = [[] for _ in range(bins)]
    for index in sorted(range(len(lengths)), key=lambda item: (-lengths[item], item)):
        load, count, number = heapq.heappop(heap)
        insort(result[number], index)
        heapq.heappush(heap, (load + sequence_cost(lengths[index], linear_tokens), count + 1, number))
    return result


def sequence_cost(length: int, linear_tokens: float = LINEAR_TOKENS) -> float:
    """Return the relative cost of one sequence, in tokens: its length plus attention's quadratic part."""
    return length + length * length / linear_tokens


def _check_lengths(lengths: Sequence[int]) -> None:
    for index, length in enumerate(lengths):
        if length < 1:
            raise DataError(
                f"sequence {index} has length {length}; only sequences with at least one token can be packed"
            )
