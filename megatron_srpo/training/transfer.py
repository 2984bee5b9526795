"""Values of rollouts on their way between data-parallel replicas.

Every rank exchanges with the ranks of its own place in the other replicas, so that all ranks of a replica end
up with the same. Who sends what to whom is known everywhere beforehand: nothing but the values travels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_srpo import platform
from megatron_srpo.model.parallel import ProcessGroups


@dataclass(frozen=True)
class Transfer:
    """Rollouts that leave this replica for those that compute them, and those that come here.

    Attributes:
        leaving: by replica, which of this replica's rollouts go there.
        coming: by replica, which of its rollouts come here; in this order they are computed.
        still: every rollout of every replica stays where it is, and nothing need be exchanged.
    """

    leaving: list[list[int]]
    coming: list[list[int]]
    still: bool
    groups: ProcessGroups

    @classmethod
    def of(cls, places: Sequence[int], counts: Sequence[int], groups: ProcessGroups) -> "Transfer":
        """Read it from where every rollout goes.

        Args:
            places: by rollout, replica after replica: the replica that computes it, or -1.
            counts: rollouts of each replica.
        """
        home = [replica for replica, count in enumerate(counts) for _ in range(count)]
        start = [sum(counts[:replica]) for replica in range(len(counts))]
        own = groups.dp_rank
        leaving: list[list[int]] = [[] for _ in counts]
        coming: list[list[int]] = [[] for _ in counts]
        for index, (origin, place) in enumerate(zip(home, places, strict=True)):
            if origin == own and place >= 0:
                leaving[place].append(index - start[origin])
            if place == own:
                coming[origin].append(index - start[origin])
        still = all(place in (origin, -1) for origin, place in zip(home, places, strict=True))
        return cls(leaving, coming, still, groups)

    def there(self, values: Sequence[Tensor], rows: Sequence[Sequence[int]]) -> list[Tensor]:
        """Send values of this replica's rollouts (at least one) to where these are computed.

        Args:
            values: by rollout, [rows, ...], of one width and type everywhere.
            rows: by replica and rollout, the rows of its value, which may be 0.

        Returns:
            The values of the rollouts that are computed here, in the order of ``coming``.
        """
        sent = [[values[index] for index in part] for part in self.leaving]
        expected = [[rows[replica][index] for index in part] for replica, part in enumerate(self.coming)]
        return self._exchange(sent, expected, values[0])

    def back(
        self, values: Sequence[Tensor], rows: Sequence[Sequence[int]], like: Tensor
    ) -> dict[int, Tensor]:
        """Send what was computed here to where it was sampled.

        Args:
            values: in the order of ``coming``.
            like: a tensor of the values' width and type, for a replica that computes nothing.

        Returns:
            By rollout of this replica, what was computed of it anywhere.
        """
        given, own = iter(values), rows[self.groups.dp_rank]
        sent = [[next(given) for _ in part] for part in self.coming]
        expected = [[own[index] for index in part] for part in self.leaving]
        order = [index for part in self.leaving for index in part]
        return dict(zip(order, self._exchange(sent, expected, like), strict=True))

    def _exchange(
        self, sent: Sequence[Sequence[Tensor]], expected: Sequence[Sequence[int]], like: Tensor
    ) -> list[Tensor]:
        """Swap tensors, by replica; ``expected`` are the rows of those that come."""
        leaving = [value for part in sent for value in part]
        if self.still:
            return leaving
        rows = [count for part in expected for count in part]
        flat = torch.cat([like[:0], *leaving]).to(platform.device())
        received = flat.new_empty(sum(rows), *flat.shape[1:])
        dist.all_to_all_single(
            received,
            flat,
            output_split_sizes=[sum(part) for part in expected],
            input_split_sizes=[sum(len(value) for value in part) for part in sent],
            group=self.groups.dp,
        )
        return list(received.cpu().split(rows)) if rows else []
