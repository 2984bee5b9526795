"""What bench_weight_sync compares: the transports as a run uses them, and two baselines that exist only here.

All are pushes of :class:`~megatron_srpo.weights.sync.WeightSync`: pause, begin, update, end, flush, (verify),
version, continue. The baselines replace only the update in the middle, so everything around it, its proof and
its clocks are the same code.
"""

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from megatron_srpo.errors import EngineError, UserError, WeightError
from megatron_srpo.model.architecture import Qwen3Architecture
from megatron_srpo.model.parallel import ProcessGroups
from megatron_srpo.weights.assemble import BucketMemory
from megatron_srpo.weights.folders import copy_hf_files
from megatron_srpo.weights.gather import hf_tensors, plan_exchanges
from megatron_srpo.weights.plan import Plan, Training, count, plan_whole
from megatron_srpo.weights.sync import SyncReport, SyncSettings, WeightSync
from megatron_srpo.weights.transports import sender_group
from megatron_srpo.weights.transports.base import EngineServer, Sending
from megatron_srpo.weights.transports.collective import CollectiveTransport
from megatron_srpo.weights.transports.disk import DiskTransport
from megatron_srpo.weights.transports.tensor import TensorTransport

#: Baselines (a) and (b).
GATHER_DISK = "full gather, disk"
PER_TENSOR = "per tensor"
#: Every variant, in the order of a round, and the link that carries it.
LINKS = {
    "tensor": "shared memory",
    "collective": "broadcast",
    "disk": "disk",
    GATHER_DISK: "disk",
    PER_TENSOR: "broadcast",
}


@dataclass(frozen=True)
class Site:
    """What every variant is built on: one rank's model, its groups, and the server's layout.

    Attributes:
        folder: the model's Hugging Face folder.
        scratch: folder for what goes through the disk.
    """

    policy: torch.nn.Module
    arch: Qwen3Architecture
    groups: ProcessGroups
    engine_tp: int
    settings: SyncSettings
    folder: Path
    scratch: Path


def make_variant(name: str, site: Site) -> WeightSync:
    """Build a variant on this rank."""
    makers: dict[str, Callable[[Site], WeightSync]] = {
        "tensor": lambda s: _ours(s, TensorTransport(s.groups, s.engine_tp)),
        "collective": lambda s: _ours(
            s, CollectiveTransport(s.groups, s.engine_tp, timeout_s=s.settings.timeout_s)
        ),
        "disk": lambda s: _ours(s, DiskTransport(s.groups, s.scratch / "ours", s.folder)),
        GATHER_DISK: GatherDiskSync,
        PER_TENSOR: PerTensorSync,
    }
    return makers[name](site)


def _ours(site: Site, transport: Any) -> WeightSync:
    return WeightSync(site.policy, site.arch, site.groups, transport, site.engine_tp, site.settings)


class WholeModelFolder:
    """A :class:`~megatron_srpo.weights.transports.base.Transport` that is handed the whole model at once."""

    def __init__(self, groups: ProcessGroups, folder: Path, hf_files: Path) -> None:
        self._leader = groups.is_leader
        self._folder, self._hf_files = folder, hf_files
        self._dtype = torch.float32
        self._servers: Sequence[EngineServer] = ()
        self._version = 0
        self.link_rate = 0.0  # measured apart, by weight_sync_links

    def plan(self, arch: Qwen3Architecture, training: Training, engine_tp: int, limit: int) -> Plan:
        """Plan every tensor once; only its sizes are used."""
        return plan_whole(arch, training, [0], limit)

    def memory(self, dtype: torch.dtype, device: torch.device) -> BucketMemory:
        """Return memory that is never used."""
        self._dtype = dtype
        return BucketMemory(dtype, device)

    def open(self, servers: Sequence[EngineServer], version: int) -> None:
        """Remember whom to tell."""
        self._servers, self._version = servers, version

    def write(self, whole: dict[str, torch.Tensor]) -> None:
        """Write the model on the first rank as ``save_pretrained`` does: one file, and the config.

        Raises:
            WeightError: the file system refuses.
        """
        if not self._leader:
            return
        try:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(parents=True)
            tensors = {name: tensor.cpu() for name, tensor in whole.items()}
            save_file(tensors, self._folder / "model.safetensors", metadata={"format": "pt"})
            copy_hf_files(self._hf_files, self._folder, self._dtype)
        except OSError as error:
            raise WeightError(f"cannot write {self._folder}: {error}; choose another --folder") from error

    def finish(self) -> Sending:
        """Let the servers read it."""
        answers = {s.name: s.load_from_disk(str(self._folder), self._version) for s in self._servers}
        return Sending(f"reading {self._folder}", answers)

    def send(self, filled: list[Any]) -> Sending:
        """Never called: there are no rounds."""
        raise NotImplementedError

    def done(self) -> None:
        """Do nothing: the next push overwrites the folder."""

    def abandon(self) -> None:
        """Do nothing: there is no connection."""


class GatherDiskSync(WeightSync):
    """Baseline (a): the whole model on one rank, written to disk, read by the servers."""

    def __init__(self, site: Site) -> None:
        self._policy = site.policy
        self._whole_model = WholeModelFolder(site.groups, site.scratch / "gathered", site.folder)
        super().__init__(
            site.policy, site.arch, site.groups, self._whole_model, site.engine_tp, site.settings
        )

    def _send_rounds(self, report: SyncReport) -> None:
        whole: dict[str, torch.Tensor] = {}
        with report.phase("gather"):
            for name, tensor in hf_tensors(self._policy, self._arch, self._groups, self._settings.dtype):
                if self._groups.is_leader:
                    whole[name] = tensor
        with report.phase("send"):
            self._together(partial(self._whole_model.write, whole))


class OneByOne(CollectiveTransport):
    """SGLang's update group, used for one tensor per call and broadcast."""

    def send_tensor(self, name: str, tensor: torch.Tensor, timeout_s: float) -> None:
        """Announce and broadcast one tensor, and wait until every server has loaded it.

        Raises:
            EngineError: a server refused, was lost or did not answer in time.
        """
        if self._group is None:
            return
        dtype = str(tensor.dtype).removeprefix("torch.")
        answers: dict[str, Future[Any]] = {
            server.name: server.load_from_group(
                [name], [dtype], [list(tensor.shape)], self._name, self._version, None
            )
            for server in self._servers
        }
        work = sender_group.broadcast(tensor.contiguous().view(-1), self._group)
        Sending(f"sending {name}", answers, (work,)).wait(timeout_s)


class PerTensorSync(WeightSync):
    """Baseline (b): tensors gathered and sent one after the other, one call and one broadcast for each."""

    def __init__(self, site: Site) -> None:
        self._policy = site.policy
        self._one_by_one = OneByOne(site.groups, site.engine_tp, timeout_s=site.settings.timeout_s)
        super().__init__(site.policy, site.arch, site.groups, self._one_by_one, site.engine_tp, site.settings)

    def _send_rounds(self, report: SyncReport) -> None:
        tensors = hf_tensors(self._policy, self._arch, self._groups, self._settings.dtype)
        failure: UserError | None = None
        while True:
            with report.phase("gather"):
                item = next(tensors, None)
            if item is None:
                break
            if failure is None:  # after a failure the others must still be gathered: that is collective
                with report.phase("send"):
                    failure = self._try(*item)
        self._together(partial(_raise, failure))

    def _try(self, name: str, tensor: torch.Tensor) -> UserError | None:
        try:
            self._one_by_one.send_tensor(name, tensor, self._settings.timeout_s)
        except EngineError as error:
            return error
        return None


def _raise(failure: UserError | None) -> None:
    if failure is not None:
        raise failure


@dataclass(frozen=True)
class Traffic:
    """Bytes that one push moves, counted from the plan.

    Attributes:
        between_ranks: from trainer rank to trainer rank.
        sent: by the trainer to the link: mapped, broadcast (counted once for all receivers) or written.
        received: by all engine ranks together, from the link.
    """

    between_ranks: int
    sent: int
    received: int

    def as_dict(self) -> dict[str, int]:
        """Return the fields by name."""
        return asdict(self)


def traffic(
    name: str, arch: Qwen3Architecture, training: Training, plan: Plan, engine_tp: int, item: int
) -> Traffic:
    """Count what a variant moves in one push.

    Args:
        training: layout of the trainer.
        plan: that of the variant.
        engine_tp: engine ranks; all of them read the whole model unless each is sent its own shard.
        item: bytes of an element.
    """
    counts = count(arch, plan)
    gathered = sum(counts.sent.values())
    if name in (GATHER_DISK, PER_TENSOR):
        gathered = gathered_whole(arch, training)
    readers = 1 if name == "tensor" else engine_tp
    return Traffic(gathered * item, counts.delivered * item, counts.delivered * readers * item)


def gathered_whole(arch: Qwen3Architecture, training: Training) -> int:
    """Return the elements that ``hf_tensors`` moves between ranks, all tensors to all of them."""
    tp, pp = training.tp_size, training.stages.size
    exchanged = sum(e.length for e in plan_exchanges(arch, tp, training.stages, training.vocab_rows))
    all_gather = tp * (tp - 1)
    to_other_stages = tp * (pp - 1) * tp
    return exchanged * (all_gather + to_other_stages)
