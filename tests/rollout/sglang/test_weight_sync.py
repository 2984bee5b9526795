"""Weights pushed to real servers from real trainer ranks, by every transport between every layout."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron_srpo.rollout.sglang.endpoint import Endpoint
from megatron_srpo.rollout.sglang.process import Reply, fetch
from tests.ranks import run_ranks
from tests.rollout.sglang.syncing import (
    GREEDY,
    PROMPTS,
    push_and_sample,
    reference_log_probs,
    write_variant,
)
from tests.rollout.sglang.test_serve import PROMPTS as SAMPLED_PROMPTS
from tests.rollout.sglang.test_serve import sample, tokens_of, without_cuda
from tests.sglang_servers import start_server

TRANSPORTS = ("tensor", "collective", "disk", "whole tensors")
_versions = count(1, len(TRANSPORTS))


@pytest.fixture(scope="module")
def two_ranks() -> Iterator[Endpoint]:
    with start_server(tensor_parallel=2) as process:
        yield process.endpoint


@pytest.fixture(scope="module", params=[1, 2], ids=["engine TP 1", "engine TP 2"])
def server(request: pytest.FixtureRequest) -> Endpoint:
    """A server whose weights the tests of this file change: the shared one, or one of two ranks."""
    return request.getfixturevalue("borrowed_endpoint" if request.param == 1 else "two_ranks")


@without_cuda
def test_two_ranks_sample_what_one_does(sglang_endpoint: Endpoint, two_ranks: Endpoint) -> None:
    """First of all: with the weights that both have read from the folder."""
    assert two_ranks.tensor_parallel == 2
    info = fetch(two_ranks, "/server_info", 30.0)
    assert isinstance(info, Reply) and info.json()["tp_size"] == 2
    for prompt in SAMPLED_PROMPTS:
        one, two = (sample(endpoint, prompt, 4) for endpoint in (sglang_endpoint, two_ranks))
        assert tokens_of(one) == tokens_of(two)
        ours, theirs = ([e[0] for e in reply["meta_info"]["output_token_logprobs"]] for reply in (one, two))
        assert ours == pytest.approx(theirs, abs=1e-4)


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
