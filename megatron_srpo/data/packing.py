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


def balance(costs: Sequence[float], loads: Sequence[float]) -> list[list[int]]:
    """Distribute pieces of work over bins so that all carry nearly the same (dearest first).

    Every index occurs exactly once. A bin to which something was dealt carries at most the mean load plus the
    last, cheapest piece that it got; of bins that start empty, the fullest at most 4/3 - 1/(3 bins) of the
    optimum, and none stays empty while there are enough pieces (Graham 1969). Equal input gives equal output.

    Args:
        costs: of each piece; positive.
        loads: what each bin carries beforehand.

    Returns:
        Indices into ``costs`` for each bin, ascending inside.

    Raises:
        DataError: a cost is not positive, or there is no bin.
    """
    if not loads:
        raise DataError("work cannot be distributed over 0 bins")
    for index, cost in enumerate(costs):
        if not cost > 0:
            raise DataError(f"piece {index} of the work costs {cost}; only positive costs can be balanced")
    heap = [(load, 0, number) for number, load in enumerate(loads)]
    heapq.heapify(heap)
    result: list[list[int]] = [[] for _ in loads]
    for index in sorted(range(len(costs)), key=lambda item: (-costs[item], item)):
        load, count, number = heapq.heappop(heap)
        insort(result[number], index)
        heapq.heappush(heap, (load + costs[index], count + 1, number))
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
