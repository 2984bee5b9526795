"""Trainer ranks that push weights to real servers: what the tests of synchronisation run on each rank."""

import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from megatron_srpo.rollout.sglang.endpoint import Endpoint
from megatron_srpo.rollout.types import Completion, Request, SamplingParams
from tests.sglang_servers import TINY_MODEL

BUCKET_BYTES = 1 << 20  # several buckets: the model has 3.3 MB
PROMPTS = [(5, 17, 300), (41, 42, 43, 44, 45, 46), (600,)]
GREEDY = SamplingParams(temperature=0.0, top_p=1.0, max_new_tokens=12)


def write_mixture(folder: Path) -> Path:
    """Write a random mixture of experts with the tiny model's vocabulary and tokenizer."""
    from tests.model.tiny import EXPERTS, write_random_qwen3

    # Without CUDA, SGLang pads an expert's units to 32 a rank.
    write_random_qwen3(
        folder, **{**EXPERTS, "vocab_size": 640, "num_experts": 8, "moe_intermediate_size": 64}
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((TINY_MODEL / name).read_bytes())
    return folder


def write_variant(folder: Path, seed: int, source: Path = TINY_MODEL) -> Path:
    """Write a model with every weight changed, so that an old one cannot pass for a new one."""
    folder.mkdir(parents=True)
    for file in source.iterdir():
        if file.suffix in (".json", ".jinja"):
            (folder / file.name).write_bytes(file.read_bytes())
    generator = torch.Generator().manual_seed(seed)
    state = load_file(source / "model.safetensors")
    changed = {
        name: value + 0.02 * torch.randn(value.shape, generator=generator) for name, value in state.items()
    }
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def make_sync(groups: Any, folder: str, transport: str, engine_tp: int, scratch: str, **settings: Any) -> Any:
    """Build a policy and its synchronisation, as a run does."""
    from megatron_srpo.model.architecture import Qwen3Architecture
    from megatron_srpo.model.build import build_policy
    from megatron_srpo.weights.load import load_hf
    from megatron_srpo.weights.sync import SyncSettings, WeightSync
    from megatron_srpo.weights.transports.collective import CollectiveTransport
    from megatron_srpo.weights.transports.disk import DiskTransport
    from megatron_srpo.weights.transports.tensor import TensorTransport

    arch = Qwen3Architecture.from_hf_folder(folder)
    policy = build_policy(arch, groups)
    load_hf(policy, arch, folder, groups)
    kinds = {
        "tensor": lambda: TensorTransport(groups, engine_tp),
        "whole tensors": lambda: TensorTransport(groups, engine_tp, whole=True),
        "collective": lambda: CollectiveTransport(groups, engine_tp, timeout_s=60),
        "disk": lambda: DiskTransport(groups, scratch, folder),
    }
    chosen = {"bucket_bytes": BUCKET_BYTES, "timeout_s": 60.0, "dtype": torch.float32, **settings}
    return WeightSync(policy, arch, groups, kinds[transport](), engine_tp, SyncSettings(**chosen))


def make_engine(endpoint: Endpoint, vocab_limit: int = 620) -> Any:
    """Connect to a server as the leader of a replica does."""
    from megatron_srpo.rollout.sglang.engine import SGLangEngine

    return SGLangEngine([endpoint], vocab_size=640, vocab_limit=vocab_limit, stop_tokens=(613, 615))


def push_and_sample(
    rank: int,
    world: int,
    jobs: list[tuple[str, str]],
    tp: int,
    pp: int,
    endpoint: Endpoint,
    scratch: str,
    first_version: int,
    ep: int = 1,
    vocab_limit: int = 620,
) -> list[tuple[list[Completion], Any]]:
    """For every (transport, folder), push the folder's weights and sample; rank 0 returns what it saw."""
    from megatron_srpo.model.parallel import initialize_parallel

    # As torchrun sets it for its processes: no group of ours may look for torchrun's store.
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    groups = initialize_parallel(tp, pp, expert=ep)
    seen = []
    for version, (transport, folder) in enumerate(jobs, start=first_version):
        sync = make_sync(groups, folder, transport, endpoint.tensor_parallel, scratch)
        engine = make_engine(endpoint, vocab_limit) if rank == 0 else None
        try:
            servers = engine.servers if engine else ()
            report = sync.push(servers, version, verify=True)
            if engine is not None:
                engine.published(version)
                requests = [Request(f"{transport}/{i}", prompt, i) for i, prompt in enumerate(PROMPTS)]
                seen.append((engine.generate(requests, GREEDY), report))
        finally:
            sync.reset()
            if engine is not None:
                engine.close()
    del os.environ["TORCHELASTIC_USE_AGENT_STORE"]
    return seen


@torch.no_grad()
def reference_log_probs(folder: Path, prompt: tuple[int, ...], tokens: tuple[int, ...]) -> torch.Tensor:
    """Return transformers' log-probs of ``tokens`` after ``prompt``."""
    from tests.model.tiny import load_reference

    logits = load_reference(folder)(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
