"""SGLang's router before stand-in servers: who is in rotation, and what of a request reaches them."""

import dataclasses
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from megatron_srpo.config.sglang import SGLangConfig
from megatron_srpo.errors import EngineError
from megatron_srpo.rollout.sglang import router as routing
from megatron_srpo.rollout.sglang.endpoint import Endpoint
from megatron_srpo.rollout.sglang.process import HttpProcess, Reply, fetch
from megatron_srpo.rollout.sglang.router import Router
from tests.rollout.sglang.test_process import make_server
from tests.sglang_servers import API_KEY
from tests.waiting import wait_until

needs_router = pytest.mark.skipif(
    not routing.is_installed(), reason="needs sglang-router (make install-sglang)"
)


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[HttpProcess]]:
    servers = [make_server(tmp_path_factory.mktemp(f"worker{number}")) for number in range(2)]
    try:
        for server in servers:
            server.start()
            server.wait_ready()
        yield servers
    finally:
        for server in servers:
            server.stop()


def make_router(tmp_path: Path, **config: Any) -> Router:
    return Router(SGLangConfig(**{"servers": 2, "start_timeout_s": 60.0, **config}), tmp_path, API_KEY)


@pytest.fixture(scope="module")
def router(workers: list[HttpProcess], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Router]:
    router = make_router(tmp_path_factory.mktemp("router"))
    try:
        router.start([worker.endpoint for worker in workers])
        yield router
    finally:
        router.stop()


def generate(router: Router, **params: Any) -> dict[str, Any]:
    body = {"rid": "r1", "input_ids": [1, 2, 3], "return_logprob": True, "sampling_params": params}
    reply = fetch(router.endpoint, "/generate", 30.0, "POST", body)
    assert isinstance(reply, Reply) and reply.status == 200, reply
    return reply.json()


def urls(workers: list[HttpProcess]) -> set[str]:
    return {worker.endpoint.url for worker in workers}


@needs_router
class TestRotation:
    def test_all_servers_are_in_it(self, router: Router, workers: list[HttpProcess]) -> None:
        assert set(router.workers) == urls(workers)

    def test_a_request_reaches_one_of_them(self, router: Router, workers: list[HttpProcess]) -> None:
        port = generate(router)["port"]
        assert any(url.endswith(f":{port}") for url in urls(workers))

    def test_out_and_in_again(self, router: Router, workers: list[HttpProcess]) -> None:
        gone, stays = (worker.endpoint for worker in workers)
        router.remove(gone.url)
        assert router.workers == (stays.url,)
        assert {generate(router)["port"] for _ in range(5)} == {int(stays.url.rpartition(":")[2])}
        router.remove(gone.url)  # a second time is no error
        router.add(gone)
        assert set(router.workers) == urls(workers)

    def test_what_decides_a_response_reaches_the_server(self, router: Router) -> None:
        """The router parses a request and writes it anew: what it does not know is lost."""
        params = {
            "sampling_seed": 2**62 + 12345,
            "temperature": 0.7,
            "top_p": 0.9,
            "max_new_tokens": 17,
            "stop_token_ids": [3, 600],
            "ignore_eos": True,
        }
        body = generate(router, **params)["body"]
        assert body["sampling_params"].items() >= params.items()
        assert (body["rid"], body["input_ids"], body["return_logprob"]) == ("r1", [1, 2, 3], True)

    def test_what_the_router_loses(self, router: Router) -> None:
        """If this fails, a newer router forwards it: then say so where requests are made."""
        assert "logit_bias" not in generate(router, logit_bias={"5": -1.0})["body"]["sampling_params"]
        reply = fetch(router.endpoint, "/abort_request", 10.0, "POST", {"rid": "r1"})
        assert isinstance(reply, Reply) and reply.status == 404

    def test_a_flush_reaches_all(self, router: Router) -> None:
        reply = fetch(router.endpoint, "/flush_cache", 30.0, "POST")
        assert isinstance(reply, Reply) and reply.json()["workers_flushed"] == 2


@needs_router
class TestKey:
    @pytest.mark.parametrize("key", [None, "wrong"])
    def test_nobody_without_it_is_served(self, router: Router, key: str | None) -> None:
        stranger = Endpoint(router.endpoint.url, api_key=key)
        for method, path in (("GET", "/workers"), ("POST", "/generate"), ("POST", "/workers")):
            reply = fetch(stranger, path, 10.0, method, {} if method == "POST" else None)
            assert isinstance(reply, Reply) and reply.status == 401

    def test_it_is_on_no_command_line(self, router: Router) -> None:
        process = psutil.Process(router._process.pid)
        assert all(API_KEY not in word for word in process.cmdline())


@needs_router
class TestFaults:
    def test_a_router_that_dies_is_started_again(self, tmp_path: Path, workers: list[HttpProcess]) -> None:
        router = make_router(tmp_path)
        endpoints = [worker.endpoint for worker in workers]
        try:
            router.start(endpoints)
            assert router.is_alive()
            os.kill(router._process.pid, signal.SIGKILL)
            wait_until(lambda: not router.is_alive(), "death")
            with pytest.raises(EngineError, match=r"SGLang's router at http\S+ does not answer GET /workers"):
                router.workers  # noqa: B018
            router.start(endpoints[:1])
            assert router.workers == (endpoints[0].url,)
        finally:
            router.stop()
        assert not router.is_alive()
        router.stop()

    def test_a_server_that_does_not_exist_is_not_taken(self, tmp_path: Path) -> None:
        router = make_router(tmp_path)
        try:
            router.start([])
            router._config = dataclasses.replace(router._config, start_timeout_s=8.0)
            with pytest.raises(EngineError, match=r"has not accepted http://127\.0\.0\.1:9 after 8 s"):
                router.add(Endpoint("http://127.0.0.1:9", api_key=API_KEY))
        finally:
            router.stop()

    def test_a_router_that_cannot_start_shows_why(self, tmp_path: Path) -> None:
        router = make_router(tmp_path)
        command = router._process._command
        router._process._command = lambda port: [*command(port), "--no-such-flag"]
        with pytest.raises(EngineError, match=r"SGLang's router (.|\n)*no-such-flag"):
            router.start([])


class TestAnswers:
    """What the router might say, said by a stand-in."""

    @pytest.fixture
    def scripted(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> tuple[Router, list[Reply | OSError]]:
        monkeypatch.setattr(routing, "is_installed", lambda: True)
        router = make_router(tmp_path, start_timeout_s=1.0)
        router._process._port = 1
        answers: list[Reply | OSError] = []
        monkeypatch.setattr(
            routing, "fetch", lambda *given: answers.pop(0) if len(answers) > 1 else answers[0]
        )
        return router, answers

    @pytest.mark.parametrize("body", [b"[]", b"{}", b"not JSON", b'{"workers": [{"url": "x"}]}'])
    def test_a_list_that_is_not_understood(self, scripted: Any, body: bytes) -> None:
        router, answers = scripted
        answers.append(Reply(200, body))
        with pytest.raises(EngineError, match="in a form that is not understood"):
            router.workers  # noqa: B018

    def test_a_refusal(self, scripted: Any) -> None:
        router, answers = scripted
        answers.append(Reply(503, b"overloaded"))
        with pytest.raises(EngineError, match="answers POST /workers with status 503: overloaded"):
            router.add(Endpoint("http://h:1"))

    def test_a_server_that_is_listed_but_not_healthy_is_waited_for(self, scripted: Any) -> None:
        router, answers = scripted
        listed = b'{"workers": [{"url": "http://h:1", "id": "a", "is_healthy": %s}]}'
        answers += [Reply(202, b"{}"), Reply(200, listed % b"false"), Reply(200, listed % b"true")]
        router.add(Endpoint("http://h:1"))
        assert len(answers) == 1

    def test_a_server_that_is_not_removed_in_time(self, scripted: Any) -> None:
        router, answers = scripted
        answers.append(Reply(200, b'{"workers": [{"url": "http://h:1", "id": "a"}]}'))
        with pytest.raises(EngineError, match=r"has not removed http://h:1 after 1 s"):
            router.remove("http://h:1")


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "is_installed", lambda: False)
    with pytest.raises(EngineError, match="sglang-router, which is not installed: make install-sglang"):
        make_router(tmp_path)


def test_every_router_has_a_metrics_port_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default is one fixed port, which a second router on the machine could not open."""
    monkeypatch.setattr(routing, "is_installed", lambda: True)
    router = make_router(tmp_path)
    ports = {
        word
        for command in (router._command(20_001), router._command(20_001))
        for word in command
        if word.startswith("--prometheus-port=")
    }
    assert len(ports) == 2
