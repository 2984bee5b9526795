"""Weights pushed to real servers from real trainer ranks, by every transport between every layout."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron_srpo.rollout.sglang.endpoint import Endpoint
from tests.ranks import run_ranks
from tests.rollout.sglang.syncing import (
    GREEDY,
    PROMPTS,
    push_and_sample,
    reference_log_probs,
    write_variant,
)
from tests.sglang_servers import start_server

TRANSPORTS = ("tensor", "collective", "disk", "whole tensors")
_versions = count(1, len(TRANSPORTS))


@pytest.fixture(scope="module", params=[1, 2], ids=["engine TP 1", "engine TP 2"])
def server(request: pytest.FixtureRequest) -> Iterator[Endpoint]:
    """A server whose weights the tests of this file change: the shared one, or one of two ranks."""
    if request.param == 1:
        yield request.getfixturevalue("borrowed_endpoint")
        return
    with start_server(tensor_parallel=request.param) as process:
        yield process.endpoint


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_servers_sample_from_the_weights_that_were_pushed(tmp_path: Path, server: Endpoint, tp: int, pp: int):
    """Each push changes every weight; log-probs are compared with transformers on the same folder.

    fp32 on both sides: 1e-4 allows for other orders of summation over 4 layers; 2e-6 is usual.
    """
    folders = [write_variant(tmp_path / name, seed) for seed, name in enumerate(TRANSPORTS)]
    jobs = [(name, str(folder)) for name, folder in zip(TRANSPORTS, folders, strict=True)]
    first = next(_versions)
    seen, *_ = run_ranks(tp * pp, push_and_sample, jobs, tp, pp, server, str(tmp_path / "disk"), first)
    assert len(seen) == len(TRANSPORTS)
    for version, (folder, (completions, report)) in enumerate(zip(folders, seen, strict=True), first):
        assert report.verified and report.version == version
        assert report.sent_bytes >= 3_300_000 and report.link_share > 0
        for prompt, completion in zip(PROMPTS, completions, strict=True):
            assert [(span.version, span.tokens) for span in completion.version_spans] == [
                (version, len(completion.tokens))
            ]
            expected = reference_log_probs(folder, prompt, completion.tokens)
            difference = (torch.tensor(completion.log_probs) - expected).abs().max()
            assert difference < 1e-4, (folder.name, difference)
        assert any(len(completion.tokens) == GREEDY.max_new_tokens for completion in completions)


def test_a_replica_of_the_engine_is_sent_the_model_once(tmp_path: Path, server: Endpoint):
    """1.05 times the model, by the report of a real push: shards for every engine rank."""
    folder = write_variant(tmp_path / "variant", 7)
    jobs = [("tensor", str(folder))]
    ((_, report),), _ = run_ranks(2, push_and_sample, jobs, 2, 1, server, str(tmp_path), next(_versions))
    model = sum(tensor.nbytes for tensor in load_file(folder / "model.safetensors").values())
    assert model <= report.sent_bytes <= 1.05 * model
