"""The trainer of bench_weight_sync: its ranks push to one server by every variant in turn.

Each runs ``python -m tools.benchmarks.weight_sync_ranks SPEC``; rank 0 writes the result as JSON.

First a round in which every push is verified, then one in which memory is watched (both with buffers made
anew, neither timed), then the timed rounds. Before each push all weights change sign: a push that did
nothing would leave what the variant before it sent, and fail its verification.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_srpo import platform
from megatron_srpo.errors import UserError
from megatron_srpo.model.architecture import Qwen3Architecture
from megatron_srpo.model.build import build_policy
from megatron_srpo.model.chunks import vocab_rows_of
from megatron_srpo.model.parallel import initialize_parallel
from megatron_srpo.model.stages import PipelineStages
from megatron_srpo.rollout.sglang.endpoint import Endpoint
from megatron_srpo.rollout.sglang.http import EventLoopThread
from megatron_srpo.rollout.sglang.server import SGLangServer
from megatron_srpo.weights.load import load_hf
from megatron_srpo.weights.plan import Training
from megatron_srpo.weights.sync import SyncReport, SyncSettings, WeightSync
from tools.benchmarks.weight_sync_variants import LINKS, Site, make_variant, traffic

#: How the memory is measured, for the record.
RESIDENT = "VmHWM after clear_refs, less VmRSS before, of rank 0 (shared memory that it has touched included)"
ON_DEVICE = "peak less current CUDA allocations, of rank 0"
UNKNOWN = "not measured: /proc/self/clear_refs cannot be written"


@dataclass(frozen=True)
class RanksSpec:
    """Everything that the ranks need to know; the file that holds it is for their eyes only (API key)."""

    folder: str
    scratch: str
    result: str
    url: str
    api_key: str | None
    engine_tp: int
    tp: int
    pp: int
    dtype: str
    bucket_bytes: int
    rounds: int
    timeout_s: float

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.touch(mode=0o600)
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, path: str) -> "RanksSpec":
        """Read what :meth:`save` wrote."""
        return cls(**json.loads(Path(path).read_text(encoding="utf-8")))


class Ranks:
    """One rank of the trainer. All ranks make the same calls."""

    def __init__(self, spec: RanksSpec, site: Site, servers: Sequence[SGLangServer]) -> None:
        self.spec, self.site, self.servers = spec, site, servers
        self.meter = platform.MemoryMeter(give_back=True)
        self.version = 0
        self.variants: dict[str, WeightSync] = {}

    def run(self) -> dict[str, Any]:
        """Make all rounds; return the records of rank 0 by variant."""
        verified = self.round(lambda name: self.renewed(name, self.push_verified))
        extra = self.round(lambda name: self.renewed(name, self.push_watched))
        timed = [self.round(self.push_timed) for _ in range(self.spec.rounds)]
        return {
            name: {
                "verified": verified[name],
                "extra_memory": extra[name],
                **self.traffic(name),
                "rounds": [found[name] for found in timed],
            }
            for name in LINKS
        }

    def round(self, action: Callable[[str], Any]) -> dict[str, Any]:
        """Do something with every variant, in turn."""
        return {name: action(name) for name in LINKS}

    def renewed(self, name: str, action: Callable[[str], Any]) -> Any:
        """Do something with a variant that holds no buffers yet."""
        if name in self.variants:
            self.variants.pop(name).reset()
        self.meter = platform.MemoryMeter(give_back=True)
        self.variants[name] = make_variant(name, self.site)
        return action(name)

    def push(self, name: str, verify: bool = False) -> tuple[float, SyncReport]:
        """Change every weight and push; return the push's seconds, which exceed the sum of its phases."""
        self.version += 1
        with torch.no_grad():
            for parameter in self.site.policy.parameters():
                parameter.neg_()
        platform.synchronize()
        dist.barrier()
        begun = time.perf_counter()
        report = self.variants[name].push(self.servers, self.version, verify)
        return time.perf_counter() - begun, report

    def push_verified(self, name: str) -> bool:
        """Push and compare checksums; raises when they differ."""
        _, report = self.push(name, verify=True)
        return report.verified

    def push_watched(self, name: str) -> int | None:
        """Push and return the rise of this rank's memory, in bytes."""
        self.push(name)
        return self.meter.rise()

    def push_timed(self, name: str) -> dict[str, Any]:
        """Push and return the seconds, whole and by phase."""
        seconds, report = self.push(name)
        return {"seconds": seconds, "phases": report.seconds}

    def traffic(self, name: str) -> dict[str, int]:
        """Return the bytes that a push moves."""
        site, spec = self.site, self.spec
        rows = vocab_rows_of(site.policy) // spec.tp
        training = Training(spec.tp, PipelineStages(spec.pp), rows)
        item = site.settings.dtype.itemsize
        plan = self.variants[name].plan
        return traffic(name, site.arch, training, plan, spec.engine_tp, item).as_dict()


def how(meter: platform.MemoryMeter) -> str:
    """Say what the meter measures."""
    if meter.rise() is None:
        return UNKNOWN
    return ON_DEVICE if platform.has_cuda() else RESIDENT


def build_site(spec: RanksSpec) -> Site:
    """Build and fill this rank's model. Collective."""
    groups = initialize_parallel(spec.tp, spec.pp)
    arch = Qwen3Architecture.from_hf_folder(spec.folder)
    dtype: torch.dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[spec.dtype]
    policy = build_policy(arch, groups, dtype)
    load_hf(policy, arch, spec.folder, groups)
    settings = SyncSettings(
        dtype=dtype, bucket_bytes=spec.bucket_bytes, timeout_s=spec.timeout_s, verify_every=0
    )
    return Site(policy, arch, groups, spec.engine_tp, settings, Path(spec.folder), Path(spec.scratch))


def run(spec: RanksSpec) -> dict[str, Any]:
    """Measure; the result or the error, of rank 0."""
    try:
        site = build_site(spec)
        loop = EventLoopThread()
        try:
            endpoint = Endpoint(spec.url, spec.engine_tp, spec.api_key)
            leader = site.groups.is_leader
            ranks = Ranks(spec, site, [SGLangServer(endpoint, loop, spec.timeout_s)] if leader else [])
            return {"variants": ranks.run(), "memory": how(ranks.meter)}
        finally:
            loop.close()
    except UserError as error:  # the same on all ranks: WeightSync sees to it
        return {"error": str(error)}


def main(path: str) -> None:
    """Run this rank of the trainer that the spec at ``path`` describes."""
    spec = RanksSpec.load(path)
    platform.init_distributed(spec.timeout_s)
    found = run(spec)
    if dist.get_rank() == 0:
        Path(spec.result).write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
