"""Through a folder of safetensors, which every rank of the copy writes a share of and every server reads.

Works between any machines that share a file system; two copies of the model pass through it.
"""

import json
import shutil
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from megatron_srpo.errors import EngineError, WeightError
from megatron_srpo.model.architecture import Qwen3Architecture
from megatron_srpo.model.parallel import ProcessGroups
from megatron_srpo.weights.assemble import BucketMemory, FilledBucket
from megatron_srpo.weights.folders import copy_hf_files
from megatron_srpo.weights.hf_files import INDEX_FILE
from megatron_srpo.weights.plan import Plan, Training, plan_whole
from megatron_srpo.weights.transports.base import EngineServer, Sending, label_of
from megatron_srpo.weights.transports.link import disk_rate


class DiskTransport:
    """Safetensors in ``folder``; a version's folder appears whole or not at all, and the last one is kept.

    Args:
        folder: on a file system that trainer and servers share; memory-backed ones are fastest.
        hf_files: folder with the model's ``config.json``.
    """

    def __init__(self, groups: ProcessGroups, folder: str | Path, hf_files: str | Path) -> None:
        self._group = groups.copy
        self._root = Path(folder) / f"replica{groups.copy_index}"
        self._hf_files = Path(hf_files)
        self._writer = ThreadPoolExecutor(1, "weights-to-disk")
        self._servers: Sequence[EngineServer] = ()
        self._version = 0
        self._written: dict[str, str] = {}
        self._dtype = torch.float32
        self.link_rate = 0.0

    @property
    def _partial(self) -> Path:
        return self._root / f".v{self._version}.partial"

    @property
    def _target(self) -> Path:
        return self._root / f"v{self._version}"

    def plan(self, arch: Qwen3Architecture, training: Training, engine_tp: int, limit: int) -> Plan:
        """Deal whole tensors out to all ranks, which write at the same time."""
        return plan_whole(arch, training, range(training.ranks), limit)

    def memory(self, dtype: torch.dtype, device: torch.device) -> BucketMemory:
        """Return ordinary memory."""
        self._dtype = dtype
        return BucketMemory(dtype, device)

    def open(self, servers: Sequence[EngineServer], version: int) -> None:
        """Make the folder.

        Raises:
            WeightError: the file system refuses.
        """
        self._servers, self._version, self._written = servers, version, {}
        if self._group.rank() == 0:
            try:
                shutil.rmtree(self._partial, ignore_errors=True)
                shutil.rmtree(self._target, ignore_errors=True)
                self._partial.mkdir(parents=True)
                self.link_rate = self.link_rate or disk_rate(self._partial)
            except OSError as error:
                raise WeightError(
                    f"cannot write weights to {self._root}: {error}; set rollout.sync.folder to another place"
                ) from error

    def send(self, filled: list[FilledBucket]) -> Sending:
        """Write this rank's buckets, one file each, beside whatever else happens."""
        answers: dict[str, Future[None]] = {}
        for item in filled:
            file = f"model-{item.bucket.lane:03}-{item.bucket.number:05}.safetensors"
            self._written |= {name: file for name, _ in item.tensors()}
            answers[file] = self._writer.submit(self._write, file, item)
        return Sending(label_of(filled), answers)

    def _write(self, file: str, item: FilledBucket) -> None:
        # Copied to the host once; on CPU, the views are written as they are.
        tensors = {name: tensor.cpu() for name, tensor in item.tensors()}
        try:
            save_file(tensors, self._partial / file, metadata={"format": "pt"})
        except OSError as error:
            raise EngineError(f"cannot write {self._partial / file}: {error}; free space") from error

    def finish(self) -> Sending:
        """Make the folder whole and let the servers read it."""
        first = self._group.rank() == 0
        gathered: list[dict[str, str]] | None = [{} for _ in range(self._group.size())] if first else None
        dist.gather_object(self._written, gathered, group_dst=0, group=self._group)
        if gathered is None:
            return Sending("reading", {})
        self._complete({name: file for part in gathered for name, file in part.items()})
        folder = str(self._target.resolve())
        answers = {server.name: server.load_from_disk(folder, self._version) for server in self._servers}
        return Sending(f"reading {folder}", answers)

    def _complete(self, files: dict[str, str]) -> None:
        try:
            copy_hf_files(self._hf_files, self._partial, self._dtype)
            index = {"metadata": {}, "weight_map": files}
            (self._partial / INDEX_FILE).write_text(json.dumps(index), encoding="utf-8")
            self._partial.rename(self._target)
        except OSError as error:
            raise WeightError(f"cannot complete {self._target}: {error}; free space") from error

    def done(self) -> None:
        """Remove the folders of other versions."""
        if self._group.rank() == 0:
            for old in self._root.iterdir():
                if old != self._target:
                    shutil.rmtree(old, ignore_errors=True)

    def abandon(self) -> None:
        """Do nothing: :meth:`open` removes what was begun."""
