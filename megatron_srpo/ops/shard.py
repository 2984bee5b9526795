"""How a padded vocabulary is cut over a tensor-parallel group, and the few collectives the operations need.

The padded vocabulary of `padded_size` columns is cut into `world` equal, contiguous shards; rank r owns the
columns [start, stop). Entries with a global id >= `vocab_size` are padding: they stand at the end, may fill
the whole shard of the last ranks, and take part in nothing: no operation of this room reads their logits
(not even NaN or inf) or gives them probability or gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_srpo.errors import ConfigError


@dataclass(frozen=True)
class VocabShard:
    """This process's part of a vocabulary.

    `group`: the ranks that hold the shards, in the order of the vocabulary; None is a group of one (no
    collective is called, whatever the default group of torch.distributed is). `vocab_size`: real entries.
    `padded_size`: columns of the output layer over all ranks, at least `vocab_size` and divisible by the
    size of the group.

    Raises ConfigError when the sizes do not fit the group, or when this process is not in the group.
    """

    group: ProcessGroup | None
    vocab_size: int
    padded_size: int

    def __post_init__(self) -> None:
        if self.world < 1:
            raise ConfigError(
                f"group {self.group!r}: this process is not in it; build the shard on its members only"
            )
        if not 1 <= self.vocab_size <= self.padded_size:
            raise ConfigError(
                f"vocab_size {self.vocab_size} with padded_size {self.padded_size}: "
                "need 1 <= vocab_size <= padded_size; pad the vocabulary upwards"
            )
        if self.padded_size % self.world:
            nearest = -(-self.padded_size // self.world) * self.world
            raise ConfigError(
                f"padded_size {self.padded_size} is not divisible by the {self.world} ranks of the group; "
                f"pad the vocabulary to {nearest}"
            )

    @property
    def world(self) -> int:
        """Number of ranks that share the vocabulary."""
        return 1 if self.group is None else dist.get_world_size(self.group)

    @property
    def rank(self) -> int:
        """Position of this process in the group."""
        return 0 if self.group is None else dist.get_rank(self.group)

    @property
    def local_size(self) -> int:
        """Columns of this rank, padding included; the same on every rank."""
        return self.padded_size // self.world

    @property
    def start(self) -> int:
        """Global id of this rank's first column."""
        return self.rank * self.local_size

    @property
    def stop(self) -> int:
        """Global id one past this rank's last column."""
        return self.start + self.local_size

    @property
    def valid_local(self) -> int:
        """How many of this rank's columns (the first ones) are real entries; 0 on a rank of padding only."""
        return min(max(self.vocab_size - self.start, 0), self.local_size)

    def valid(self, logits_TV: Tensor) -> Tensor:
        """The columns of real entries, as a view."""
        return logits_TV[:, : self.valid_local]

    def with_padding(self, columns_TV: Tensor) -> Tensor:
        """Inverse of `valid` for gradients: padding columns are appended as zeros (no copy where there are
        none).
        """
        missing = self.local_size - columns_TV.shape[1]
        return torch.nn.functional.pad(columns_TV, (0, missing)) if missing else columns_TV

    def locate(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For global ids: (local column, owned here, real entry anywhere), each shaped like `ids`.

        The local column of an id that is not owned here is a column that exists, to be masked out: `gather`
        needs a legal index even on a rank without one.
        """
        real = (ids >= 0) & (ids < self.vocab_size)
        local = ids.long() - self.start
        owned = real & (local >= 0) & (local < self.local_size)
        return local.clamp(0, self.local_size - 1), owned, real

    def sum_(self, tensor: Tensor) -> Tensor:
        """All-reduce in place by addition; returns its argument. Nothing happens in a group of one."""
        return self._all_reduce(tensor, dist.ReduceOp.SUM)

    def max_(self, tensor: Tensor) -> Tensor:
        """All-reduce in place by maximum; returns its argument. Nothing happens in a group of one."""
        return self._all_reduce(tensor, dist.ReduceOp.MAX)

    def gather(self, tensor_TK: Tensor) -> Tensor:
        """All-gather along the last dimension in rank order: (T, K) on every rank -> (T, world * K)."""
        if self.world == 1:
            return tensor_TK
        parts = [
            torch.empty_like(tensor_TK, memory_format=torch.contiguous_format) for _ in range(self.world)
        ]
        dist.all_gather(parts, tensor_TK.contiguous(), group=self.group)
        return torch.cat(parts, dim=-1)

    def check_shapes(self, logits_TV: Tensor, ids_TK: Tensor | None = None) -> None:
        """ValueError unless logits are (T, local_size) and ids (T, K): a wrong shape is a defect."""
        if logits_TV.dim() != 2 or logits_TV.shape[1] != self.local_size:
            raise ValueError(
                f"logits of shape {tuple(logits_TV.shape)}: this shard needs (tokens, {self.local_size}), "
                "padding included"
            )
        if ids_TK is not None and (ids_TK.dim() != 2 or ids_TK.shape[0] != logits_TV.shape[0]):
            raise ValueError(
                f"ids of shape {tuple(ids_TK.shape)} for logits of shape {tuple(logits_TV.shape)}: "
                "need one row of ids per token"
            )

    def _all_reduce(self, tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        # An empty tensor is reduced like any other: a rank that skipped a collective would be out of step.
        if self.world > 1:
            dist.all_reduce(tensor, op=operation, group=self.group)
        return tensor


def math_dtype(tensor: Tensor) -> torch.dtype:
    """Type in which probabilities are computed: float64 for float64 input, float32 for everything else."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def row_max(columns_TV: Tensor) -> Tensor:
    """Largest entry per row, -inf where there are no columns (a rank of padding only)."""
    if columns_TV.shape[1] == 0:
        return columns_TV.new_full((columns_TV.shape[0],), float("-inf"))
    return columns_TV.amax(dim=-1)


def log_softmax_columns(logits: Sequence[Tensor], dtype: torch.dtype, shard: VocabShard) -> list[Tensor]:
    """Log-probabilities over the full vocabulary, of each of several (T, V) logits, on this rank's real
    columns.

    Two all-reduces in all, of one number per token and tensor. The results are new buffers that the caller
    may overwrite. Subtracting the maximum before the log-sum (and not their sum) keeps logits of +-1e4 exact
    to fp32's last bits.
    """
    columns = [shard.valid(item).to(dtype, copy=True) for item in logits]
    max_NT = shard.max_(torch.stack([row_max(item_TV) for item_TV in columns]))
    for item_TV, max_T in zip(columns, max_NT, strict=True):
        item_TV.sub_(max_T[:, None])
    sum_NT = shard.sum_(torch.stack([item_TV.exp().sum(dim=-1) for item_TV in columns]))
    for item_TV, sum_T in zip(columns, sum_NT, strict=True):
        item_TV.sub_(sum_T.log()[:, None])
    return columns
