"""Experts pushed to a real server of two ranks, from trainers that spread them over ranks and from others."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
import torch

from megatron_srpo.rollout.sglang.endpoint import Endpoint
from tests.ranks import run_ranks
from tests.rollout.sglang.syncing import (
    PROMPTS,
    push_and_sample,
    reference_log_probs,
    write_mixture,
    write_variant,
)
from tests.sglang_servers import start_server

TRANSPORTS = ("tensor", "collective", "disk")
_versions = count(1, len(TRANSPORTS))


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mixture(tmp_path_factory.mktemp("mixture"))


@pytest.fixture(scope="module")
def server(mixture: Path) -> Iterator[Endpoint]:
    """A server that cuts every expert in two: without CUDA, SGLang does not spread whole experts."""
    with start_server(mixture, tensor_parallel=2) as process:
        yield process.endpoint


@pytest.mark.parametrize(
    ("tp", "pp", "ep"),
    [
        pytest.param(1, 1, 1, marks=pytest.mark.slow),
        (1, 1, 4),
        pytest.param(2, 1, 2, marks=pytest.mark.slow),
        (1, 2, 2),
    ],
)
def test_servers_sample_from_the_experts_that_were_pushed(
    tmp_path: Path, mixture: Path, server: Endpoint, tp: int, pp: int, ep: int
) -> None:
    """Tolerance as in test_weight_sync.py. The checksums of the server's own tensors are compared, too."""
    folders = [write_variant(tmp_path / name, seed, mixture) for seed, name in enumerate(TRANSPORTS)]
    jobs = [(name, str(folder)) for name, folder in zip(TRANSPORTS, folders, strict=True)]
    first, ranks = next(_versions), max(tp, ep) * pp
    disk = str(tmp_path / "weights")
    # A random model likes all ids alike; one beyond the tokenizer's would be sampled again, from fewer ids.
    seen, *_ = run_ranks(ranks, push_and_sample, jobs, tp, pp, server, disk, first, ep, 640)
    assert len(seen) == len(TRANSPORTS)
    for folder, (completions, report) in zip(folders, seen, strict=True):
        assert report.verified
        for prompt, completion in zip(PROMPTS, completions, strict=True):
            expected = reference_log_probs(folder, prompt, completion.tokens)
            difference = (torch.tensor(completion.log_probs) - expected).abs().max()
            assert difference < 1e-4, (folder.name, difference)
