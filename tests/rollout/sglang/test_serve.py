"""The launcher, and what a real server started by it does without CUDA that SGLang alone would not."""

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_srpo import platform
from megatron_srpo.errors import EngineError
from megatron_srpo.rollout.local import LocalEngine
from megatron_srpo.rollout.sglang import serve
from megatron_srpo.rollout.sglang.endpoint import Endpoint
from megatron_srpo.rollout.sglang.process import HttpProcess, Reply, fetch
from megatron_srpo.rollout.types import Request, SamplingParams
from tests.sglang_servers import API_KEY, ROOT, TINY_MODEL

PROMPTS = [(5, 6, 7), (88, 17, 300, 41, 2, 77, 12), (200,), (9, 9, 9, 9, 9), (410, 33, 7, 8)]
without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="on GPUs SGLang has its own sampling")


def sample(endpoint: Endpoint, prompt: tuple[int, ...], seed: int | None, **params: Any) -> dict[str, Any]:
    settings = {"max_new_tokens": 24, "temperature": 1.0, "ignore_eos": True, **params}
    if seed is not None:
        settings["sampling_seed"] = seed
    body = {"input_ids": list(prompt), "sampling_params": settings, "return_logprob": True}
    reply = fetch(endpoint, "/generate", 300.0, "POST", body)
    assert isinstance(reply, Reply) and reply.status == 200, reply
    return reply.json()


def tokens_of(reply: dict[str, Any]) -> list[int]:
    return reply["output_ids"]


def sample_together(endpoint: Endpoint, requests: list[dict[str, Any]]) -> list[list[int]]:
    with ThreadPoolExecutor(len(requests)) as pool:
        return [tokens_of(reply) for reply in pool.map(lambda given: sample(endpoint, **given), requests)]


@without_cuda
class TestSeeds:
    def test_a_seed_decides_the_response(self, sglang_endpoint: Endpoint) -> None:
        responses = [
            tuple(tokens_of(sample(sglang_endpoint, PROMPTS[0], seed))) for seed in (1, 1, 2, 2**63 - 1)
        ]
        assert responses[0] == responses[1]
        assert len(set(responses)) == 3

    def test_no_seed_is_a_new_one_each_time(self, sglang_endpoint: Endpoint) -> None:
        responses = {tuple(tokens_of(sample(sglang_endpoint, PROMPTS[0], None))) for _ in range(4)}
        assert len(responses) == 4, "600 tokens to choose from, 24 times: equal ones mean a fixed seed"

    def test_neither_batch_nor_cache_changes_a_response(self, sglang_endpoint: Endpoint) -> None:
        requests = [{"prompt": prompt, "seed": seed} for prompt in PROMPTS for seed in (11, 12, 13, 14)]
        alone = [tokens_of(sample(sglang_endpoint, **request)) for request in requests]
        assert isinstance(fetch(sglang_endpoint, "/flush_cache", 30.0, "POST"), Reply)
        assert sample_together(sglang_endpoint, requests) == alone
        assert sample_together(sglang_endpoint, requests[::-1]) == alone[::-1]

    def test_filters_of_other_requests_do_not_change_a_response(self, sglang_endpoint: Endpoint) -> None:
        plain: list[dict[str, Any]] = [{"prompt": prompt, "seed": 21} for prompt in PROMPTS]
        alone = sample_together(sglang_endpoint, plain)
        others = [
            {"prompt": PROMPTS[0], "seed": 5, "top_p": 0.5},
            {"prompt": PROMPTS[1], "seed": 6, "top_k": 3},
        ]
        others += [{"prompt": PROMPTS[2], "seed": 7, "min_p": 0.2}]
        assert sample_together(sglang_endpoint, plain + others)[: len(plain)] == alone

    def test_filtered_responses_are_reproducible(self, sglang_endpoint: Endpoint) -> None:
        params = {"top_p": 0.8, "top_k": 20, "min_p": 0.01, "temperature": 0.7}
        first, second = (tokens_of(sample(sglang_endpoint, PROMPTS[1], 8, **params)) for _ in range(2))
        assert first == second

    def test_both_engines_sample_the_same_responses(self, sglang_endpoint: Endpoint) -> None:
        """At top-p 1. Rounding may move a token only where a uniform number is within 1e-6 of a boundary."""
        requests = [
            Request(f"{prompt}/{seed}", prompt, seed) for prompt in PROMPTS for seed in (31, 2**62 + 7, 33)
        ]
        expected = LocalEngine(TINY_MODEL).generate(requests, SamplingParams(1.0, 1.0, 24))
        limit = 24
        for request, completion in zip(requests, expected, strict=True):
            reply = sample(sglang_endpoint, request.prompt_tokens, request.seed, max_new_tokens=limit)
            # The local engine stops at the end of sequence, this request does not.
            assert tokens_of(reply)[: len(completion.tokens)] == list(completion.tokens)
            found = [entry[0] for entry in reply["meta_info"]["output_token_logprobs"]]
            assert found[: len(completion.tokens)] == pytest.approx(completion.log_probs, abs=1e-4)


@without_cuda
def test_batched_attention_gives_the_log_probs_of_a_plain_forward(sglang_endpoint: Endpoint) -> None:
    """Requests of unequal lengths, decoded together. 1e-4: what is allowed between trainer and engine."""
    model = AutoModelForCausalLM.from_pretrained(TINY_MODEL, dtype=torch.float32).eval()
    requests = [{"prompt": prompt * repeats, "seed": 3} for prompt in PROMPTS for repeats in (1, 7)]
    with ThreadPoolExecutor(len(requests)) as pool:
        replies = list(pool.map(lambda given: sample(sglang_endpoint, max_new_tokens=40, **given), requests))
    for request, reply in zip(requests, replies, strict=True):
        prompt, response = list(request["prompt"]), tokens_of(reply)
        with torch.no_grad():
            logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        expected = torch.log_softmax(logits, dim=-1).gather(1, torch.tensor(response)[:, None])[:, 0]
        found = [entry[0] for entry in reply["meta_info"]["output_token_logprobs"]]
        assert found == pytest.approx(expected.tolist(), abs=1e-4)


class TestKey:
    def test_nobody_without_it_is_served(self, sglang_endpoint: Endpoint) -> None:
        for key in (None, "wrong"):
            reply = fetch(Endpoint(sglang_endpoint.url, api_key=key), "/model_info", 10.0)
            assert isinstance(reply, Reply) and reply.status == 401

    def test_it_is_not_on_any_command_line(self, sglang_server_process: HttpProcess) -> None:
        """Every user of a machine can list all of its command lines."""
        main = psutil.Process(sglang_server_process.pid)
        family = [main, *main.children(recursive=True)]
        assert len(family) >= 3
        assert all(API_KEY not in word for process in family for word in process.cmdline())
        # The environment is readable by the same user only; the children are given none the less.
        assert all(API_KEY not in process.environ().values() for process in family[1:])

    def test_it_is_taken_out_of_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in platform.sglang_environment("secret", 1).items():
            monkeypatch.setenv(name, value)
        assert platform.take_sglang_api_key() == "secret"
        assert platform.take_sglang_api_key() is None
        assert "secret" not in os.environ.values()


class TestDieWith:
    def test_a_parent_that_has_ended_already(self) -> None:
        code = "from megatron_srpo.rollout.sglang.serve import die_with; die_with(1 << 30); print('lives')"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 1 and done.stdout == ""
        assert "that started this server has ended" in done.stderr

    def test_the_right_parent(self) -> None:
        code = "import os; from megatron_srpo.rollout.sglang.serve import die_with;"
        code += "die_with(os.getppid()); print('lives')"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
        assert done.stdout == "lives\n"


class TestPlugin:
    def test_it_is_declared_to_sglang(self) -> None:
        """In the package's installed metadata, where SGLang looks."""
        (entry,) = importlib.metadata.entry_points(group="sglang.srt.plugins", name="megatron_srpo")
        assert entry.load() is platform.sglang_plugin
        serve.require_plugin()

    def test_without_it_nothing_is_started(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(importlib.metadata, "entry_points", lambda **wanted: ())
        monkeypatch.setattr(platform, "has_cuda", lambda: False)
        monkeypatch.setattr(serve, "run", lambda arguments: pytest.fail("the server was started"))
        with pytest.raises(EngineError, match=r"pip install --no-deps --editable \."):
            serve.main(["--model-path=m"])


class TestMain:
    def test_arguments_and_key_reach_sglang(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Also a key that begins like an option, as one random key in 64 does."""
        for name, value in platform.sglang_environment("-secret", 1).items():
            monkeypatch.setenv(name, value)
        seen: list[list[str]] = []
        monkeypatch.setattr(serve, "run", seen.append)
        monkeypatch.setattr(serve, "die_with", lambda pid: seen.append([str(pid)]))
        serve.main(["--die-with", "42", "--model-path=m"])
        assert seen == [["42"], ["--model-path=m", "--api-key=-secret"]]

    def test_importing_the_launcher_changes_nothing(self) -> None:
        """Only as the main module of a process of SGLang's may it put the stand-ins in place."""
        assert "sgl_kernel" not in sys.modules and "torchvision" not in sys.modules

    def test_check_answers_on_standard_output(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr("sys.stdin", __import__("io").StringIO('{"a": 1}'))
        monkeypatch.setattr(serve, "check", lambda options: {"arguments": sorted(options)})
        serve.main(["--check"])
        assert json.loads(capsys.readouterr().out) == {"arguments": ["a"]}


class TestTokens:
    """Options of a small parser, so that every kind of action is seen whatever SGLang happens to use."""

    @pytest.fixture
    def parser(self) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
        parser.add_argument("--model-path", "--model", required=True)
        parser.add_argument("--both", action=argparse.BooleanOptionalAction, default=True)
        parser.add_argument("--old", action="store_false")
        parser.add_argument("--sizes", type=int, nargs="+")
        parser.add_argument("-s", "--short", dest="renamed", type=int, choices=(1, 2))
        return parser

    def write(self, parser: argparse.ArgumentParser, name: str, value: Any) -> list[str]:
        return serve._tokens(parser, serve._actions(parser)[name], name, value)

    def test_names(self, parser: argparse.ArgumentParser) -> None:
        assert set(serve._actions(parser)) >= {"model_path", "model", "both", "no_both", "short", "renamed"}
        assert "help" not in serve._actions(parser)

    @pytest.mark.parametrize(
        ("name", "value", "tokens"),
        [
            ("model", "m", ["--model-path=m"]),
            ("model", "-m with space", ["--model-path=-m with space"]),
            ("both", True, ["--both"]),
            ("both", False, ["--no-both"]),
            ("sizes", [1, 2], ["--sizes", "1", "2"]),
            ("sizes", (3,), ["--sizes", "3"]),
            ("renamed", 2, ["--short=2"]),
        ],
    )
    def test_values(self, parser: argparse.ArgumentParser, name: str, value: Any, tokens: list[str]) -> None:
        assert self.write(parser, name, value) == tokens

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("sizes", ["x"], "invalid int value"),
            ("sizes", [], "expected at least one argument"),
            ("short", 3, "invalid choice"),
            # A switch that says no when it is given cannot say yes.
            ("old", True, "cannot be said to SGLang"),
            ("both", 1, "SGLang expects true or false"),
        ],
    )
    def test_refusals(self, parser: argparse.ArgumentParser, name: str, value: Any, message: str) -> None:
        with pytest.raises(EngineError, match=message):
            self.write(parser, name, value)
