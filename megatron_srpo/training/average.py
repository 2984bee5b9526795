"""The self-teacher's average in fp32, of which each rank keeps a part.

Ranks that hold the same weights hold the same average. So they lay the parameters end to end and share them
out in equal parts: a rank averages its own part, and all of them put the rounded values together.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_srpo import platform
from megatron_srpo.model.chunks import named_parameters
from megatron_srpo.model.fp8 import plain
from megatron_srpo.model.parallel import ProcessGroups

#: Elements that are put together at once, over all ranks: what bounds the memory of an update.
BLOCK = 64 << 20


@dataclass(frozen=True)
class SavedAverage:
    """The whole average of one parameter, as a checkpoint takes it or is to fill it.

    Attributes:
        replica: which of the ranks that bring it along this one is; the first one writes. None: what it is of
            the parameter itself.
    """

    values: Tensor
    replica: int | None


class TeacherAverage:
    """Moving average of a policy's weights, in the teacher's parameters and, in fp32, apart from them.

    Parameters that are fp32 themselves are their own average.

    Args:
        copy: the teacher's weights, at which the average begins.
        on_host: keep what lies apart in host memory.
    """

    def __init__(self, copy: torch.nn.Module, groups: ProcessGroups, on_host: bool = False) -> None:
        self._copy = copy
        kinds: dict[tuple[bool, torch.dtype], list[str]] = {}
        for name, parameter in named_parameters(copy).items():
            kinds.setdefault((_is_spread(parameter), parameter.dtype), []).append(name)
        self._own = [name for (_, dtype), names in kinds.items() for name in names if dtype == torch.float32]
        taught = named_parameters(copy)
        self._shared = {
            tuple(names): SharedAverage(
                [taught[name] for name in names], groups.expert_copies if spread else groups.dp_cp, on_host
            )
            for (spread, dtype), names in kinds.items()
            if dtype != torch.float32
        }

    @property
    def held(self) -> list[Tensor]:
        """What this rank holds beside the teacher's parameters."""
        return [shared.values for shared in self._shared.values()]

    @torch.no_grad()
    def follow(self, policy: torch.nn.Module, rate: float) -> None:
        """Take up the share ``rate`` of the policy's weights. A collective of ranks with the same weights."""
        current, taught = named_parameters(policy), named_parameters(self._copy)
        for name in self._own:
            taught[name].data.lerp_(plain(current[name]).to(taught[name]), rate)
        for names, shared in self._shared.items():
            shared.follow([current[name] for name in names], rate)

    @torch.no_grad()
    def to_save(self) -> dict[str, SavedAverage]:
        """Return whole averages by parameter; of the shared ones, what this rank writes. A collective."""
        found = self._saved_own()
        for names, shared in self._shared.items():
            found |= {names[index]: SavedAverage(values, 0) for index, values in shared.collect().items()}
        return found

    def to_load(self) -> dict[str, SavedAverage]:
        """Return the same to be filled; of the shared ones, those of which this rank keeps something."""
        found = self._saved_own()
        for names, shared in self._shared.items():
            for index, replica in shared.touched():
                empty = torch.empty(shared.shape(index), dtype=torch.float32, device="cpu")
                found[names[index]] = SavedAverage(empty, replica)
        return found

    @torch.no_grad()
    def restore(self, loaded: Mapping[str, Tensor]) -> None:
        """Go on from averages that :meth:`to_load` described. A collective, as :meth:`follow`."""
        taught = named_parameters(self._copy)
        for name in self._own:
            taught[name].data.copy_(loaded[name])
        for names, shared in self._shared.items():
            shared.restore({index: loaded[name] for index, name in enumerate(names) if name in loaded})

    def _saved_own(self) -> dict[str, SavedAverage]:
        taught = named_parameters(self._copy)
        return {name: SavedAverage(taught[name].data, None) for name in self._own}


class SharedAverage:
    """This rank's part of the average of parameters that the ranks of a group hold alike.

    Args:
        parameters: of the teacher, all of one type.
        group: the ranks that hold the same; their parts are equal, but for places behind the end.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], group: dist.ProcessGroup, on_host: bool) -> None:
        self._parameters = parameters
        self._group = group
        self._row = _Row(parameter.numel() for parameter in parameters)
        self._part = -(-self._row.size // group.size())
        self._start = group.rank() * self._part
        values = self._read(parameters, 0, self._part)
        self.values = platform.to_host(values) if on_host else values

    def follow(self, policy: list[torch.nn.Parameter], rate: float) -> None:
        """Average this rank's part, and give the teacher's parameters what all ranks have averaged."""
        for low, high in self._blocks():
            home = self.values[low:high]
            average = home.to(platform.device()).lerp_(self._read(policy, low, high), rate)
            if average.data_ptr() != home.data_ptr():
                home.copy_(average)
            self._spread(low, average.to(self._parameters[0].dtype))

    def collect(self) -> dict[int, Tensor]:
        """Return the whole averages, in host memory, of parameters that begin in this rank's part."""
        found = {
            index: torch.empty(self.shape(index), dtype=torch.float32, device="cpu")
            for index, replica in self.touched()
            if replica == 0
        }
        for low, high in self._blocks():
            self._put_together(low, self.values[low:high].to(platform.device()), found)
        return found

    def touched(self) -> list[tuple[int, int]]:
        """List the parameters of which this rank keeps something, and as which of the ranks that do."""
        rank = self._group.rank()
        pieces = self._row.pieces(self._start, self._start + self._part)
        return [(index, rank - self._row.offsets[index] // self._part) for index, _, _ in pieces]

    def shape(self, index: int) -> torch.Size:
        """Return the shape of one parameter."""
        return self._parameters[index].shape

    def restore(self, loaded: Mapping[int, Tensor]) -> None:
        """Take this rank's part out of whole averages, and give all parameters their values."""
        for index, inside, place in self._row.pieces(self._start, self._start + self._part):
            self.values[place].copy_(loaded[index].view(-1)[inside])
        for low, high in self._blocks():
            block = self.values[low:high].to(platform.device())
            self._spread(low, block.to(self._parameters[0].dtype))

    def _blocks(self) -> Iterator[tuple[int, int]]:
        """Cut this rank's part as every rank cuts its own."""
        size = max(1, BLOCK // self._group.size())
        for low in range(0, self._part, size):
            yield low, min(low + size, self._part)

    def _read(self, parameters: list[torch.nn.Parameter], low: int, high: int) -> Tensor:
        """Return places ``low`` to ``high`` of this rank's part in fp32; 0 behind the end."""
        values = torch.zeros(high - low, dtype=torch.float32, device=platform.device())
        for index, inside, place in self._row.pieces(self._start + low, self._start + high):
            values[place].copy_(plain(parameters[index]).data.view(-1)[inside])
        return values

    def _spread(self, low: int, values: Tensor) -> None:
        self._put_together(low, values, {index: one.data for index, one in enumerate(self._parameters)})

    def _put_together(self, low: int, values: Tensor, into: Mapping[int, Tensor]) -> None:
        """Write what all ranks have from place ``low`` of their parts on, where there is a tensor for it."""
        together = values.new_empty(self._group.size() * len(values))
        dist.all_gather_into_tensor(together, values.contiguous(), group=self._group)
        for rank, theirs in enumerate(together.split(len(values))):
            start = rank * self._part + low
            for index, inside, place in self._row.pieces(start, start + len(theirs)):
                if index in into:
                    into[index].view(-1)[inside].copy_(theirs[place])


class _Row:
    """Tensors of given sizes laid end to end."""

    def __init__(self, sizes: Iterable[int]) -> None:
        self.offsets = [0, *accumulate(sizes)]

    @property
    def size(self) -> int:
        return self.offsets[-1]

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, slice, slice]]:
        """Yield what lies between two places: the tensor, the slice of it, and of the places asked for."""
        index = bisect_right(self.offsets, start) - 1
        while index < len(self.offsets) - 1 and self.offsets[index] < stop:
            begin, end = self.offsets[index], self.offsets[index + 1]
            low, high = max(start, begin), min(stop, end)
            yield index, slice(low - begin, high - begin), slice(low - start, high - start)
            index += 1


def _is_spread(parameter: torch.nn.Parameter) -> bool:
    """Say whether Megatron-Core spreads it over expert-parallel ranks: then fewer ranks hold the same."""
    return not getattr(parameter, "allreduce", True)
