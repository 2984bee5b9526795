"""Weight synchronisation between CUDA devices: what the CPU tests of ``tests/rollout/sglang`` cannot show.

The same pushes as there, in bfloat16: CUDA IPC in place of shared memory, NCCL in place of gloo, the CUDA
checksum in place of SHA-256, and FP8 weights, which have no CPU counterpart. The trainer's ranks are
processes of their own: ``python -m tests.gpu.test_weight_sync SPEC`` is one of them.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_srpo.rollout.sglang.endpoint import Endpoint
from megatron_srpo.rollout.types import Request
from megatron_srpo.weights.checksum import engine_checksum
from tests.model.tiny import write_random_qwen3
from tests.rollout.sglang.syncing import GREEDY, PROMPTS, make_engine, make_sync, reference_log_probs
from tests.sglang_servers import TINY_MODEL, require_sglang, start_server
from tools.benchmarks.bench_weight_sync import run_ranks

pytestmark = pytest.mark.gpu

#: Heads of 64, which every attention backend of SGLang takes; the vocabulary of the tests' tokenizer and
#: engine. Logits have a standard deviation of about 1.
SHAPE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 640,
    "initializer_range": 0.05,
    "tie_word_embeddings": True,
}
#: The engine computes in bfloat16 (8 bits), the reference in fp32 with the unrounded weights: errors
#: of 2^-8 per operation, through some ten operations, of logits of size 1 to 4. A CPU server in bfloat16
#: gives 0.01 and 0.04; the wrong model gives more than 2.
BFLOAT16_MEAN, BFLOAT16_MAX = 0.05, 0.25
#: FP8 (e4m3) rounds weights and activations to 4 bits: errors of 2^-4 each, which average out over 256 terms.
FP8_MEAN = 0.2


@dataclass(frozen=True)
class Push:
    """One job of the trainer: which transport, which folder's weights, and whether checksums are compared."""

    transport: str
    folder: str
    verify: bool = True


@dataclass(frozen=True)
class Seen:
    """What rank 0 saw after a push.

    Attributes:
        responses: by prompt, (tokens, log-probs).
        versions: by prompt, version and number of tokens of every span.
    """

    responses: list[tuple[list[int], list[float]]]
    versions: list[list[tuple[int, int]]]
    verified: bool
    sent_bytes: int


def write_models(folder: Path, count: int) -> list[str]:
    """Write models that differ in every weight, each with the tests' tokenizer."""
    written = []
    for seed in range(count):
        target = write_random_qwen3(folder / str(seed), seed=seed, **SHAPE)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (target / name).write_bytes((TINY_MODEL / name).read_bytes())
        written.append(str(target))
    return written


@contextmanager
def server(folder: str, tensor_parallel: int = 1, **config: Any) -> Iterator[Endpoint]:
    """Start a server that leaves room for the trainer on the same device."""
    options = {"cuda_graph_backend_decode": "disabled", "cuda_graph_backend_prefill": "disabled"}
    options = {**options, "skip_server_warmup": True, **config.pop("options", {})}
    chosen = {"tensor_parallel": tensor_parallel, "mem_fraction": 0.3, "options": options, **config}
    with start_server(folder, "bfloat16", **chosen) as process:
        yield process.endpoint


def push_all(
    endpoint: Endpoint, pushes: Sequence[Push], scratch: Path, tp: int = 1, pp: int = 1
) -> list[Seen]:
    """Run the trainer on ``tp * pp`` ranks and return what it saw after each push."""
    scratch.mkdir(exist_ok=True)
    spec, result, log = scratch / "spec.json", scratch / "result.json", scratch / "log.txt"
    content = {"endpoint": asdict(endpoint), "pushes": [asdict(push) for push in pushes]}
    spec.write_text(json.dumps({**content, "tp": tp, "pp": pp, "result": str(result)}), encoding="utf-8")
    with log.open("w", encoding="utf-8") as output:
        status = run_ranks([sys.executable, "-m", "tests.gpu.test_weight_sync", str(spec)], tp * pp, output)
    assert status == 0, log.read_text(encoding="utf-8")[-5000:]
    return [Seen(**item) for item in json.loads(result.read_text(encoding="utf-8"))]


def differences(folder: str, seen: Seen) -> torch.Tensor:
    """Return |log-prob of the engine - transformers on ``folder``| of every sampled token."""
    parts = []
    for prompt, (tokens, log_probs) in zip(PROMPTS, seen.responses, strict=True):
        expected = reference_log_probs(Path(folder), prompt, tuple(tokens))
        parts.append((torch.tensor(log_probs) - expected).abs())
    return torch.cat(parts)


def check(pushes: Sequence[Push], seen: Sequence[Seen]) -> None:
    """Every push was verified bit for bit, and is what the engine samples from."""
    assert len(seen) == len(pushes)
    for version, (push, found) in enumerate(zip(pushes, seen, strict=True), start=1):
        assert found.verified == push.verify
        for (tokens, _), spans in zip(found.responses, found.versions, strict=True):
            assert spans == [[version, len(tokens)]], push
        off = differences(push.folder, found)
        assert off.mean() < BFLOAT16_MEAN and off.max() < BFLOAT16_MAX, (push, off)


# --- checksum --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.uint8])
@pytest.mark.parametrize("shape", [(1,), (5,), (8192,), (8193,), (130, 257), (3000, 1001)])
def test_the_checksum_is_that_of_sglangs_kernel(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Sizes around a tile of 8192 words, odd numbers of bytes, and more tiles than are mixed at once."""
    require_sglang()
    from sglang.kernels.ops.memory.gpu_tensor_hash import gpu_tensor_hash

    generator = torch.Generator().manual_seed(sum(shape))
    tensor = torch.randn(shape, generator=generator).mul(100).cuda().to(dtype)
    assert engine_checksum(tensor) == f"{gpu_tensor_hash(tensor):016x}"


def test_the_checksum_is_that_of_the_words_on_cpu() -> None:
    """The arithmetic does not depend on the device, so the CPU tests of it speak for CUDA."""
    from megatron_srpo.weights.checksum import _word_sums

    tensor = torch.randn(3000, 1001)
    assert _word_sums(tensor.cuda()) == _word_sums(tensor)


# --- pushes ----------------------------------------------------------------------------------------------


def same_host(folders: Sequence[str]) -> list[Push]:
    """CUDA IPC both ways, repeated: buffers are mapped again, by handles of their own. Then the disk."""
    first, second = folders
    return [
        Push("tensor", second),
        Push("tensor", first),
        Push("whole tensors", second),
        Push("tensor", first),
        Push("disk", second),
    ]


def test_cuda_ipc_to_a_server_on_the_same_device(tmp_path: Path) -> None:
    folders = write_models(tmp_path, 2)
    pushes = same_host(folders)
    with server(folders[0]) as endpoint:
        check(pushes, push_all(endpoint, pushes, tmp_path / "run"))


@pytest.mark.gpu(2)
@pytest.mark.parametrize("tp", [1, 2])
def test_cuda_ipc_to_a_server_on_two_devices(tmp_path: Path, tp: int) -> None:
    """With trainer TP 1, both engine ranks map memory of the first device; with 2, each its own."""
    folders = write_models(tmp_path, 2)
    pushes = same_host(folders)
    with server(folders[0], tensor_parallel=2) as endpoint:
        seen = push_all(endpoint, pushes, tmp_path / "run", tp=tp)
    check(pushes, seen)
    # Whole tensors are the model; shards add what both engine ranks hold, which is little.
    assert seen[2].sent_bytes <= seen[0].sent_bytes <= 1.05 * seen[2].sent_bytes


@pytest.mark.gpu(2)
def test_nccl_to_a_server_on_another_device(tmp_path: Path) -> None:
    """The trainer is on the first device: NCCL refuses two ranks on one."""
    folders = write_models(tmp_path, 2)
    pushes = [Push("collective", folders[1]), Push("collective", folders[0])]
    with server(folders[0], options={"base_gpu_id": 1}) as endpoint:
        check(pushes, push_all(endpoint, pushes, tmp_path / "run"))


def test_fp8_weights_are_quantised_again_by_the_engine(tmp_path: Path) -> None:
    """Checksums say nothing here, so log-probs must: near the pushed weights, far from those before."""
    folders = write_models(tmp_path, 2)
    pushes = [
        Push("whole tensors", folders[1], verify=False),
        Push("whole tensors", folders[0], verify=False),
    ]
    with server(folders[0], quantization="fp8") as endpoint:
        seen = push_all(endpoint, pushes, tmp_path / "run")
    befores = [folders[0], folders[1]]
    for push, before, found in zip(pushes, befores, seen, strict=True):
        near, far = differences(push.folder, found).mean(), differences(before, found).mean()
        assert near < FP8_MEAN, (push, near)
        assert far > 2 * near, (push, near, far)


# --- the trainer -----------------------------------------------------------------------------------------


def push_and_look(groups: Any, push: Push, endpoint: Endpoint, scratch: str, version: int) -> Seen | None:
    """Push and, on the leader, sample; the synchronisation is made anew, as in the CPU tests."""
    sync = make_sync(
        groups,
        push.folder,
        push.transport,
        endpoint.tensor_parallel,
        scratch,
        dtype=torch.bfloat16,
        verify_every=0,
    )
    engine = make_engine(endpoint) if groups.is_leader else None
    try:
        report = sync.push(engine.servers if engine else (), version, verify=push.verify)
        if engine is None:
            return None
        engine.published(version)
        requests = [Request(f"{version}/{place}", prompt, place) for place, prompt in enumerate(PROMPTS)]
        completions = engine.generate(requests, GREEDY)
        return Seen(
            [(list(found.tokens), list(found.log_probs)) for found in completions],
            [[(span.version, span.tokens) for span in found.version_spans] for found in completions],
            report.verified,
            report.sent_bytes,
        )
    finally:
        sync.reset()
        if engine is not None:
            engine.close()


def main(path: str) -> None:
    """Be one rank of the trainer that the spec at ``path`` describes."""
    from megatron_srpo import platform
    from megatron_srpo.model.parallel import initialize_parallel

    spec = json.loads(Path(path).read_text(encoding="utf-8"))
    platform.init_distributed(timeout_s=120)
    groups = initialize_parallel(spec["tp"], spec["pp"])
    endpoint, scratch = Endpoint(**spec["endpoint"]), str(Path(path).parent / "weights")
    seen = [
        push_and_look(groups, Push(**push), endpoint, scratch, version)
        for version, push in enumerate(spec["pushes"], start=1)
    ]
    if groups.is_leader:
        Path(spec["result"]).write_text(json.dumps([asdict(one) for one in seen if one]), encoding="utf-8")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
