"""Sampling over servers that fail: every request is answered once, and rightly, or the error says why not.

Each test of a fault reads at the stand-in server that the fault happened.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from megatron_srpo.errors import EngineError
from megatron_srpo.rollout.sglang.engine import EngineLost, SGLangEngine
from megatron_srpo.rollout.sglang.http import Retries
from megatron_srpo.rollout.sglang.sampler import PRIME_FROM, SamplerSettings
from megatron_srpo.rollout.types import Completion, Request, SamplingParams
from tests.rollout.sglang.fault_server import (
    EOS,
    VOCABULARY,
    FaultServer,
    expected_log_prob,
    expected_tokens,
)

SAMPLED = SamplingParams(1.0, 1.0, 12)
FAST = Retries(attempts=4, first_delay_s=0.01, longest_delay_s=0.05)


def make_requests(prompts: int = 4, samples: int = 3, length: int = 5) -> list[Request]:
    return [
        Request(f"{p}/{s}", (p, *range(length - 1)), 1000 * p + s)
        for p in range(prompts)
        for s in range(samples)
    ]


@contextmanager
def servers_and_engine(
    *servers: FaultServer, limit: int = VOCABULARY, settings: dict[str, Any] | None = None, **options: Any
) -> Iterator[SGLangEngine]:
    """Start the stand-ins and an engine over them; at the end nothing may be running on any."""
    with ExitStack() as stack:
        for server in servers:
            stack.enter_context(server)
        engine = SGLangEngine(
            [server.endpoint for server in servers],
            vocab_size=VOCABULARY,
            vocab_limit=limit,
            stop_tokens=(EOS,),
            settings=SamplerSettings(**{"retries": FAST, **(settings or {})}),
            **options,
        )
        stack.callback(engine.close)
        yield engine


def assert_right(completions: Sequence[Completion], requests: Sequence[Request], most: int = 12) -> None:
    assert [completion.request_id for completion in completions] == [request.id for request in requests]
    for completion, request in zip(completions, requests, strict=True):
        tokens = expected_tokens(request.prompt_tokens, request.seed, most)
        assert list(completion.tokens) == tokens
        assert list(completion.log_probs) == [expected_log_prob(token) for token in tokens]
        assert completion.finish_reason == ("stop" if tokens[-1] == EOS else "length")


def wait_until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_request_is_answered_once(count: int) -> None:
    servers = [FaultServer() for _ in range(count)]
    with servers_and_engine(*servers) as engine:
        requests = make_requests(prompts=7)
        assert_right(engine.generate(requests, SAMPLED), requests)
    assert sum(len(server.bodies) for server in servers) == len(requests)
    assert {completion for server in servers for completion in server.running} == set()


def test_samples_of_a_prompt_meet_on_one_server_and_servers_share_the_work() -> None:
    servers = [FaultServer() for _ in range(3)]
    with servers_and_engine(*servers) as engine:
        engine.generate(make_requests(prompts=6, samples=4), SAMPLED)
    homes = [{tuple(body["input_ids"]) for body in server.bodies} for server in servers]
    assert [len(server.bodies) for server in servers] == [8, 8, 8]
    assert sum(map(len, homes)) == 6, "no prompt on two servers"


def test_the_deal_is_the_same_every_time() -> None:
    deals = []
    for _ in range(2):
        servers = [FaultServer() for _ in range(2)]
        with servers_and_engine(*servers) as engine:
            engine.generate(make_requests(prompts=5), SAMPLED)
        deals.append([sorted(body["input_ids"][0] for body in server.bodies) for server in servers])
    assert deals[0] == deals[1]


def test_a_long_prompt_is_computed_before_its_samples_come() -> None:
    server = FaultServer()
    with servers_and_engine(server) as engine:
        engine.generate(make_requests(prompts=3, samples=4, length=PRIME_FROM), SAMPLED)
    assert server.counts["prime"] == 3
    seen: set[int] = set()
    for body in server.bodies:
        prompt, most = body["input_ids"][0], body["sampling_params"]["max_new_tokens"]
        assert (most == 0) == (prompt not in seen), "the first call of a prompt only computes it"
        seen.add(prompt)


@pytest.mark.parametrize(("samples", "length"), [(1, PRIME_FROM), (4, PRIME_FROM - 1)])
def test_nothing_is_computed_ahead_where_it_would_not_pay(samples: int, length: int) -> None:
    server = FaultServer()
    with servers_and_engine(server) as engine:
        engine.generate(make_requests(samples=samples, length=length), SAMPLED)
    assert server.counts["prime"] == 0


def test_requests_in_flight_are_bounded() -> None:
    server = FaultServer(token_s=0.002)
    most = 0

    class Watched(set[str]):
        def add(self, rid: str) -> None:
            nonlocal most
            super().add(rid)
            most = max(most, len(self))

    server.running = Watched()
    with servers_and_engine(server, settings={"max_concurrency": 3}) as engine:
        requests = make_requests(prompts=5)
        assert_right(engine.generate(requests, SAMPLED), requests)
    assert most == 3


FAULTS = ["500", "503", "429", "truncated", "not json", "reset"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_call_that_is_lost_is_repeated(fault: str) -> None:
    server = FaultServer([fault, fault])
    with servers_and_engine(server) as engine:
        requests = make_requests()
        assert_right(engine.generate(requests, SAMPLED), requests)
    assert server.counts[fault] == 2
    assert len(server.bodies) == len(requests) + 2
    rids = [body["rid"] for body in server.bodies]
    assert len(set(rids)) == len(rids), "SGLang refuses an id that it still knows"


def lie(*path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    def falsify(reply: dict[str, Any]) -> None:
        holder: Any = reply
        for step in path[:-1]:
            holder = holder[step]
        holder[path[-1]] = value

    return falsify


LIES = {
    "log-prob NaN": (
        lie("meta_info", "output_token_logprobs", 0, 0, value=float("nan")),
        "logprobs.0. = 'nan'",
    ),
    "token unknown": (lie("meta_info", "output_token_logprobs", 0, 1, value=VOCABULARY), "= '50'"),
    "another's answer": (lie("meta_info", "id", value="somebody"), "meta_info.id = 'somebody'"),
    "count": (lie("meta_info", "completion_tokens", value=99), "completion_tokens = '99'"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_asked_again(name: str) -> None:
    falsify, _ = LIES[name]
    server = FaultServer([falsify])
    with servers_and_engine(server) as engine:
        requests = make_requests()
        assert_right(engine.generate(requests, SAMPLED), requests)
    assert server.counts["lie"] == 1


@pytest.mark.parametrize("name", LIES)
def test_a_server_that_always_lies_is_named_with_field_value_and_request(name: str) -> None:
    falsify, named = LIES[name]
    server = FaultServer(always=falsify)
    with servers_and_engine(server) as engine, pytest.raises(EngineError, match=f"(?s)'only'.*{named}"):
        engine.generate([Request("only", (1, 2), 3)], SAMPLED)
    assert server.counts["lie"] == FAST.attempts


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_always_fails_is_replaced_by_the_other(fault: str) -> None:
    broken, sound = FaultServer(always=fault), FaultServer()
    with servers_and_engine(broken, sound) as engine:
        requests = make_requests(prompts=8)
        assert_right(engine.generate(requests, SAMPLED), requests)
    assert broken.counts[fault] >= 1
    assert len(sound.bodies) == len(requests)


def test_no_server_left() -> None:
    servers = [FaultServer(always="500"), FaultServer(always="reset")]
    with (
        servers_and_engine(*servers) as engine,
        pytest.raises(EngineLost, match=r"last failure of .*status 500.*;.*/generate"),
    ):
        engine.generate(make_requests(), SAMPLED)
    assert servers[0].counts["500"] >= FAST.attempts
    assert servers[1].counts["reset"] >= FAST.attempts


def test_one_request_that_always_fails_does_not_run_for_ever() -> None:
    poison = Request("poison", (9, 9), 1)
    server = FaultServer(token_s=0.1)
    answer = server._answer

    async def picky(request: Any, body: dict[str, Any], fault: Any) -> Any:
        return await answer(request, body, "500" if body["input_ids"] == [9, 9] else fault)

    server._answer = picky  # type: ignore[method-assign]
    with (
        servers_and_engine(server) as engine,
        pytest.raises(EngineError, match=r"(?s)'poison' failed 8 times in a row, others do not.*status 500"),
    ):
        engine.generate([*make_requests(), poison], SAMPLED)
    assert sum(body["input_ids"] == [9, 9] for body in server.bodies) == 8


@pytest.mark.parametrize("status", ["400", "422", "401"])
def test_a_refused_request_raises_at_once_by_its_id(status: str) -> None:
    server = FaultServer([status])
    with servers_and_engine(server) as engine, pytest.raises(EngineError, match=f"'only'.*status {status}"):
        engine.generate([Request("only", (1, 2), 3)], SAMPLED)
    assert server.counts[status] == 1
    assert len(server.bodies) == 1


def test_killed_in_the_middle_with_another_left() -> None:
    victim, other = FaultServer(token_s=0.01), FaultServer(token_s=0.001)
    with servers_and_engine(victim, other) as engine:
        requests = make_requests(prompts=6)
        generation = engine.submit(requests, SAMPLED)
        wait_until(lambda: len(victim.running) >= 5)
        lost = len(victim.running)
        victim.stop()
        assert_right(generation.result(), requests)
    assert lost >= 5
    assert len(victim.bodies) + len(other.bodies) >= len(requests) + lost


def test_killed_alone_then_back_samples_only_what_was_lost() -> None:
    server = FaultServer(token_s=0.002)
    with servers_and_engine(server, settings={"max_concurrency": 4}) as engine:
        requests = make_requests(prompts=6)
        done: list[int] = []
        first = engine.submit(requests, SAMPLED, lambda count, total: done.append(count))
        wait_until(lambda: len(server.bodies) >= 9)
        server.stop()
        with pytest.raises(EngineLost, match=server.endpoint.url):
            first.result()
        finished, asked = len(done), len(server.bodies)
        assert 0 < finished < len(requests)
        server.restart()
        assert_right(engine.generate(requests, SAMPLED), requests)
        assert len(server.bodies) - asked == len(requests) - finished
        engine.generate(requests, SAMPLED)
        assert len(server.bodies) - asked == 2 * len(requests) - finished, "kept only until the success"


def test_a_frozen_server_is_left_when_excluded() -> None:
    frozen, sound = FaultServer(always="hang"), FaultServer()
    with servers_and_engine(frozen, sound) as engine:
        requests = make_requests(prompts=6)
        generation = engine.submit(requests, SAMPLED)
        wait_until(lambda: frozen.counts["hang"] == 9 and len(sound.bodies) == 9)
        assert not generation.done
        engine.exclude(frozen.endpoint.url)
        assert_right(generation.result(), requests)
        assert len(sound.bodies) == len(requests)
        engine.generate(requests, SAMPLED)
        assert frozen.counts["hang"] == 9, "nothing is sent to an excluded server"
        frozen.always = None
        engine.include(frozen.endpoint.url)
        assert_right(engine.generate(requests, SAMPLED), requests)
        assert len(frozen.bodies) == 9 + 9


def test_a_frozen_server_alone_is_lost_when_excluded() -> None:
    server = FaultServer(always="hang")
    with servers_and_engine(server) as engine:
        generation = engine.submit(make_requests(), SAMPLED)
        wait_until(lambda: server.counts["hang"] == 12)
        engine.exclude(server.endpoint.url)
        with pytest.raises(EngineLost, match="taken out of rotation"):
            generation.result()


def test_a_call_that_takes_too_long_is_repeated() -> None:
    server = FaultServer(["hang"])
    with servers_and_engine(server, settings={"request_timeout_s": 0.3}) as engine:
        requests = make_requests(prompts=1, samples=2)
        assert_right(engine.generate(requests, SAMPLED), requests)
    assert server.counts["hang"] == 1


def test_old_weights_are_no_answer() -> None:
    """A server that something else restarted samples with the weights of its folder again."""
    restarted, current = FaultServer(version="default"), FaultServer(version="2")
    with servers_and_engine(restarted, current) as engine:
        engine.published(2)
        requests = make_requests()
        completions = engine.generate(requests, SAMPLED)
        assert_right(completions, requests)
        assert {completion.weight_version for completion in completions} == {2}
        assert restarted.bodies, "it was asked"
        current.stop()
        with pytest.raises(EngineLost, match="weight version 0, but 2 is published"):
            engine.generate(requests, SAMPLED)


class TestStragglers:
    def test_they_are_cut_off_with_what_they_have(self) -> None:
        server = FaultServer(token_s=0.02)
        long = SamplingParams(1.0, 1.0, 10_000)
        engine_options = {"settings": {"straggler_timeout_s": 0.5}}
        with servers_and_engine(server, **engine_options) as engine:
            requests = [Request(str(seed), (1, 2), seed) for seed in range(200)]
            completions = engine.generate(requests, long)
            wait_until(lambda: not server.running)
        reasons = Counter(completion.finish_reason for completion in completions)
        assert reasons["abort"] >= 5
        assert reasons["stop"] >= 1
        assert server.counts["/abort_request"] >= reasons["abort"]
        for request, completion in zip(requests, completions, strict=True):
            whole = expected_tokens(request.prompt_tokens, request.seed, 10_000)
            assert list(completion.tokens) == whole[: len(completion.tokens)]
            assert (completion.finish_reason == "stop") == (len(completion.tokens) == len(whole))

    def test_each_gets_at_least_one_token(self) -> None:
        server = FaultServer(token_s=0.03)
        settings = {"straggler_timeout_s": 0.2, "max_concurrency": 4}
        with servers_and_engine(server, settings=settings) as engine:
            requests = make_requests(prompts=10, samples=2)
            completions = engine.generate(requests, SamplingParams(1.0, 1.0, 5000))
        assert all(completion.tokens for completion in completions)
        late = [body for body in server.bodies if body["sampling_params"]["max_new_tokens"] == 1]
        assert late, "some had not begun when the limit came"
        for request, completion in zip(requests, completions, strict=True):
            whole = expected_tokens(request.prompt_tokens, request.seed, 5000)
            assert list(completion.tokens) == whole[: len(completion.tokens)]

    def test_no_limit_by_default(self) -> None:
        server = FaultServer()
        with servers_and_engine(server) as engine:
            engine.generate(make_requests(), SAMPLED)
        assert server.counts["/abort_request"] == 0


def test_an_abort_that_we_did_not_ask_for_is_carried_on() -> None:
    """A weight update that pauses with mode "abort" returns what is in flight."""
    server = FaultServer(token_s=0.01)
    with servers_and_engine(server) as engine:
        requests = make_requests()
        generation = engine.submit(requests, SAMPLED)
        wait_until(lambda: len(server.running) == len(requests))
        time.sleep(0.05)
        server._aborted.update(server.running)
        server.version = "1"
        completions = generation.result()
    assert_right(completions, requests)
    longer = [body for body in server.bodies if len(body["input_ids"]) > 5]
    assert longer, "some went on from where they were"
    assert any(len(completion.version_spans) == 2 for completion in completions)
    for completion in completions:
        assert completion.weight_version == completion.version_spans[0].version


def test_aborts_without_end_are_an_error() -> None:
    server = FaultServer(always="abort")
    with (
        servers_and_engine(server) as engine,
        pytest.raises(EngineError, match=r"'only' failed 8 times in a row.*the servers abort it each time"),
    ):
        engine.generate([Request("only", (1, 2), 3)], SAMPLED)
    assert server.counts["abort"] == 8


def test_padding_ids_never_come_back() -> None:
    server = FaultServer()
    with servers_and_engine(server, limit=30) as engine:
        requests = make_requests(prompts=6)
        completions = engine.generate(requests, SAMPLED)
    assert all(token < 30 for completion in completions for token in completion.tokens)
    assert all(
        completion.finish_reason == "stop" or len(completion.tokens) == 12 for completion in completions
    )
    assert len(server.bodies) > len(requests), "padding was drawn, and its place sampled again"
    assert all("logit_bias" not in body["sampling_params"] for body in server.bodies)


def test_cancellation_leaves_nothing_running() -> None:
    server = FaultServer(token_s=0.05)
    with servers_and_engine(server) as engine:
        generation = engine.submit(make_requests(), SamplingParams(1.0, 1.0, 5000))
        wait_until(lambda: len(server.running) == 12)
        generation.cancel()
        assert generation.done
        with pytest.raises(EngineError, match="cancelled"):
            generation.result()
        wait_until(lambda: not server.running)
        assert server.counts["/abort_request"] == 12
        server.token_s = 0.0
        requests = make_requests()
        assert_right(engine.generate(requests, SAMPLED), requests)


def test_the_hook_hears_of_every_response() -> None:
    heard: Counter[str] = Counter()
    threads: set[int] = set()

    def hear(url: str) -> None:
        heard[url] += 1
        threads.add(threading.get_ident())

    servers = [FaultServer(), FaultServer()]
    with servers_and_engine(*servers, on_finished=hear) as engine:
        engine.generate(make_requests(prompts=4, samples=3), SAMPLED)
        assert heard == {server.endpoint.url: 6 for server in servers}
    assert threads == threads - {threading.get_ident()}
