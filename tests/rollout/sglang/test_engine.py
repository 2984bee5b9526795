"""The sglang engine: its rules against a stand-in, its numbers on a real server against transformers."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from megatron_srpo.errors import EngineError
from megatron_srpo.rollout.engine import BackgroundEngine, RolloutEngine
from megatron_srpo.rollout.local import LocalEngine
from megatron_srpo.rollout.seeds import request_seed
from megatron_srpo.rollout.sglang.endpoint import Endpoint
from megatron_srpo.rollout.sglang.engine import EngineLost, SamplerSettings, SGLangEngine
from megatron_srpo.rollout.types import Completion, Request, SamplingParams, VersionSpan
from tests.model.tiny import load_reference
from tests.rollout.models import full_forward_log_probs, tokens_of
from tests.rollout.sglang.fault_server import EOS, VOCABULARY, FaultServer
from tests.rollout.sglang.test_sampler import (
    SAMPLED,
    assert_right,
    make_requests,
    servers_and_engine,
    wait_until,
)
from tests.sglang_servers import TINY_MODEL

NOWHERE = Endpoint("http://127.0.0.1:9")


def make_engine(**options: Any) -> SGLangEngine:
    return SGLangEngine([NOWHERE], **{"vocab_size": VOCABULARY, "stop_tokens": (EOS,), **options})


class TestRules:
    """What holds whatever the server says."""

    @pytest.mark.parametrize(
        ("options", "named"),
        [
            ({"vocab_limit": 51}, "vocab_limit = 51; give 1 to 50"),
            ({"vocab_limit": 0}, "vocab_limit = 0"),
            ({"stop_tokens": (50,)}, r"stop tokens \(50,\)"),
            ({"vocab_limit": 7}, r"stop tokens \(7,\) .*7 token ids"),
        ],
    )
    def test_a_vocabulary_that_does_not_fit(self, options: dict[str, Any], named: str) -> None:
        with pytest.raises(EngineError, match=named):
            make_engine(**options)

    def test_no_server(self) -> None:
        with pytest.raises(EngineError, match="at least one server"):
            SGLangEngine([], vocab_size=VOCABULARY, stop_tokens=(EOS,))

    @pytest.mark.parametrize(
        ("requests", "named"),
        [
            ([Request("a", (), 1)], "'a' has an empty prompt"),
            ([Request("a", (1, 50), 1)], "'a' holds token ids 1 to 50; the model knows 0 to 49"),
            ([Request("a", (-1,), 1)], "'a' holds token ids -1"),
            ([Request("a", (1,), 1), Request("a", (2,), 1)], "two requests have the id 'a'"),
        ],
    )
    def test_a_request_that_would_end_the_server_is_not_sent(
        self, requests: list[Request], named: str
    ) -> None:
        server = FaultServer()
        with servers_and_engine(server) as engine, pytest.raises(EngineError, match=named):
            engine.submit(requests, SAMPLED)
        assert server.bodies == []

    def test_it_is_an_engine_of_the_leader(self) -> None:
        engine: BackgroundEngine = make_engine()
        plain: RolloutEngine = engine
        assert plain.parallelism == "leader"
        assert plain.weight_version == 0
        plain.close()

    def test_versions_rise(self) -> None:
        engine = make_engine()
        engine.published(3)
        engine.published(3)
        assert engine.weight_version == 3
        with pytest.raises(EngineError, match="version 2 is older than the engine's 3"):
            engine.published(2)
        engine.close()

    def test_no_requests(self) -> None:
        engine = make_engine()
        assert engine.generate([], SAMPLED) == []
        engine.close()

    def test_nobody_there(self) -> None:
        engine = make_engine(settings=SamplerSettings())
        with pytest.raises(EngineLost, match=r"http://127.0.0.1:9: request '0/0': .*Cannot connect"):
            engine.generate(make_requests(1, 1), SAMPLED)
        engine.close()

    def test_after_close_every_call_is_refused(self) -> None:
        server = FaultServer(token_s=0.05)
        with servers_and_engine(server) as engine:
            generation = engine.submit(make_requests(), SamplingParams(1.0, 1.0, 5000))
            wait_until(lambda: server.running)
            engine.close()
            engine.close()
            with pytest.raises(EngineError, match="cancelled, or its engine closed"):
                generation.result()
            calls: list[Callable[[], object]] = [
                lambda: engine.generate(make_requests(), SAMPLED),
                lambda: engine.servers[0].pause("abort"),
            ]
            for call in calls:
                with pytest.raises(EngineError, match="closed"):
                    call()
            wait_until(lambda: not server.running)

    def test_progress_comes_in_the_thread_that_waits(self) -> None:
        seen: list[tuple[int, int]] = []
        threads: set[int] = set()

        def progress(done: int, total: int) -> None:
            seen.append((done, total))
            threads.add(threading.get_ident())

        with servers_and_engine(FaultServer()) as engine:
            generation = engine.submit(make_requests(), SAMPLED, progress)
            first = generation.result()
            assert seen == [(done, 12) for done in range(1, 13)]
            assert threads == {threading.get_ident()}
            assert generation.result() == first, "asked again, it says the same"
            assert len(seen) == 12

    def test_submit_does_not_wait_and_two_calls_run_beside_each_other(self) -> None:
        server = FaultServer(token_s=0.02)
        with servers_and_engine(server) as engine:
            one = engine.submit(make_requests(prompts=2), SAMPLED)
            two = engine.submit(make_requests(prompts=3), SAMPLED)
            assert not one.done
            assert not two.done
            wait_until(lambda: len(server.running) > 9)
            assert_right(two.result(), make_requests(prompts=3))
            assert_right(one.result(), make_requests(prompts=2))

    @pytest.mark.parametrize("changed", ["id", "prompt", "seed", "sampling"])
    def test_what_is_kept_answers_only_the_same_request(self, changed: str) -> None:
        request, *siblings = make_requests(prompts=1)
        server = FaultServer([lambda reply: None] * 3 + ["400"])
        with servers_and_engine(server, settings={"max_concurrency": 1}) as engine:
            with pytest.raises(EngineError, match=r"'x'.*status 400"):
                engine.generate([request, *siblings, Request("x", (1, 2), 0)], SAMPLED)
            asked = len(server.bodies)
            again = {
                "id": Request("other", request.prompt_tokens, 0),
                "prompt": Request("0/0", (9, *request.prompt_tokens), 0),
                "seed": Request("0/0", request.prompt_tokens, 1),
            }.get(changed, request)
            params = SamplingParams(0.5, 1.0, 12) if changed == "sampling" else SAMPLED
            engine.generate([again], params)
            assert len(server.bodies) == asked + 1
            engine.generate([request], SAMPLED)
            assert len(server.bodies) == asked + 1, "the kept one was still there"

    def test_exclusion_needs_a_server_of_the_engine(self) -> None:
        engine = make_engine()
        for call in (engine.exclude, engine.include):
            with pytest.raises(
                EngineError, match=r"no server 'http://x'; its servers are http://127.0.0.1:9"
            ):
                call("http://x")
        engine.close()

    def test_requests_move_when_servers_come_and_go(self) -> None:
        """One is taken away while all requests are in flight there; its place is taken by another."""
        slow, quick = FaultServer(token_s=60.0), FaultServer()
        with quick, servers_and_engine(slow) as engine:
            generation = engine.submit(make_requests(), SAMPLED)
            wait_until(lambda: len(slow.running) == 12)
            engine.set_servers([quick.endpoint])
            assert_right(generation.result(), make_requests())
            assert [server.name for server in engine.servers] == [quick.endpoint.url]
            assert len(quick.bodies) == 12
            with pytest.raises(EngineError, match="needs at least one server"):
                engine.set_servers([])

    def test_servers_that_stay_are_left_alone(self) -> None:
        first, second = FaultServer(token_s=0.05), FaultServer(token_s=0.05)
        with servers_and_engine(first, second) as engine:
            control = engine.servers[1]
            generation = engine.submit(make_requests(), SAMPLED)
            wait_until(lambda: len(first.running) + len(second.running) == 12)
            here = len(second.running)
            engine.exclude(first.endpoint.url)
            engine.set_servers([second.endpoint])
            assert engine.servers == (control,)
            assert_right(generation.result(), make_requests())
            assert here and len(second.bodies) == 12, "nothing was sent there twice"

    def test_other_calls_of_a_server_that_is_gone_fail_until_it_is_back(self) -> None:
        with servers_and_engine(FaultServer(), FaultServer()) as engine:
            gone, stays = engine.servers
            engine.exclude(gone.name, gone=True)
            for back in (engine.include, lambda url: engine.set_servers([gone.endpoint, stays.endpoint])):
                with pytest.raises(EngineError, match="is lost"):
                    gone.info().result(30)
                stays.info().result(30)
                back(gone.name)
                gone.info().result(30)
                engine.exclude(gone.name, gone=True)

    def test_behind_a_router_all_is_sent_again_when_a_server_is_lost(self) -> None:
        """The router keeps waiting for a machine without power."""
        router, workers = FaultServer(token_s=60.0), [FaultServer(), FaultServer()]
        with router, workers[0], workers[1]:
            engine = SGLangEngine(
                [worker.endpoint for worker in workers],
                [router.endpoint],
                vocab_size=VOCABULARY,
                stop_tokens=(EOS,),
            )
            generation = engine.submit(make_requests(), SAMPLED)
            wait_until(lambda: len(router.running) == 12)
            router.token_s = 0.0
            engine.exclude(workers[0].endpoint.url)
            engine.exclude(workers[0].endpoint.url)
            assert_right(generation.result(), make_requests())
            assert len(router.bodies) == 24
            engine.close()

    def test_behind_a_router_the_last_exclusion_closes_the_door(self) -> None:
        router, workers = FaultServer(), [FaultServer(), FaultServer()]
        with router, workers[0], workers[1]:
            engine = SGLangEngine(
                [worker.endpoint for worker in workers],
                [router.endpoint],
                vocab_size=VOCABULARY,
                stop_tokens=(EOS,),
            )
            urls = [server.endpoint.url for server in engine.servers]
            assert urls == [worker.endpoint.url for worker in workers]
            engine.exclude(urls[0])
            assert_right(engine.generate(make_requests(), SAMPLED), make_requests())
            assert len(router.bodies) == 12
            assert not workers[0].bodies + workers[1].bodies
            engine.exclude(urls[1])
            with pytest.raises(EngineLost):
                engine.generate(make_requests(), SAMPLED)
            engine.include(urls[1])
            assert_right(engine.generate(make_requests(), SAMPLED), make_requests())
            engine.close()

    def test_behind_a_router_every_server_is_asked_to_abort(self) -> None:
        """A router passes no aborts on, and does not say which server has the request."""
        router, workers = FaultServer(token_s=0.05), [FaultServer(), FaultServer()]
        with router, workers[0], workers[1]:
            engine = SGLangEngine(
                [worker.endpoint for worker in workers],
                [router.endpoint],
                vocab_size=VOCABULARY,
                stop_tokens=(EOS,),
            )
            generation = engine.submit(make_requests(1, 2), SamplingParams(1.0, 1.0, 5000))
            wait_until(lambda: len(router.running) == 2)
            generation.cancel()
            wait_until(lambda: not router.running)
            assert [worker.counts["/abort_request"] for worker in workers] == [2, 2]
            assert router.counts["/abort_request"] == 0
            engine.close()


# --- The real server -------------------------------------------------------------------------------------

SIZE, LIMIT = 640, 639
STOPS = (615, 613)


@pytest.fixture(scope="module")
def engine(sglang_endpoint: Endpoint) -> Iterator[SGLangEngine]:
    engine = SGLangEngine([sglang_endpoint], vocab_size=SIZE, vocab_limit=LIMIT, stop_tokens=STOPS)
    engine.servers[0].flush_cache().result()
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return load_reference(TINY_MODEL)


def real_requests(
    prompts: int = 4, samples: int = 3, length: int = 40, purpose: str = "test"
) -> list[Request]:
    generator = torch.Generator().manual_seed(length)
    texts = [torch.randint(0, 600, (length + p,), generator=generator).tolist() for p in range(prompts)]
    return [
        Request(f"{p}/{s}", tuple(text), request_seed(1, purpose, 0, p, s))
        for p, text in enumerate(texts)
        for s in range(samples)
    ]


def running(engine: SGLangEngine) -> int:
    loads = engine.servers[0].loads().result()["loads"]
    return sum(rank["num_running_reqs"] + rank["num_waiting_reqs"] for rank in loads)


def becomes_idle(engine: SGLangEngine) -> None:
    """Wait: the last reply of a request leaves the server before its scheduler drops the request."""
    wait_until(lambda: running(engine) == 0, 60)


PARAMS = SamplingParams(1.0, 1.0, 40)


@pytest.mark.parametrize(
    "params",
    [PARAMS, SamplingParams(0.7, 0.8, 30), SamplingParams(2.5, 1.0, 30), SamplingParams(0.0, 1.0, 30)],
)
def test_log_probs_equal_transformers(
    engine: SGLangEngine, model: torch.nn.Module, params: SamplingParams
) -> None:
    """1e-4: what is allowed between trainer and engine; rounding of fp32 log-probs here is about 1e-6."""
    requests = real_requests()
    for request, completion in zip(requests, engine.generate(requests, params), strict=True):
        temperature = params.temperature or 1.0
        expected = full_forward_log_probs(model, request.prompt_tokens, completion.tokens, temperature)
        assert completion.log_probs == pytest.approx(expected, abs=1e-4)


def test_padding_is_never_sampled_and_log_probs_stay_whole(
    sglang_endpoint: Endpoint, model: torch.nn.Module
) -> None:
    """A limit below the tokenizer's length, and a temperature at which padding is drawn often."""
    limit = 560
    engine = SGLangEngine([sglang_endpoint], vocab_size=SIZE, vocab_limit=limit, stop_tokens=())
    requests = real_requests(prompts=2, samples=2)
    completions = engine.generate(requests, SamplingParams(3.0, 1.0, 25))
    greedy = engine.generate(requests, SamplingParams(0.0, 1.0, 12))
    engine.close()
    for request, completion in zip(requests, completions, strict=True):
        assert len(completion.tokens) == 25
        assert max(completion.tokens) < limit
        expected = full_forward_log_probs(model, request.prompt_tokens, completion.tokens, 3.0)
        assert completion.log_probs == pytest.approx(expected, abs=1e-4)
    local = LocalEngine(TINY_MODEL, vocab_limit=limit, stop_tokens=())
    assert tokens_of(greedy) == tokens_of(local.generate(requests, SamplingParams(0.0, 1.0, 12)))


def test_greedy_equals_the_local_engine(engine: SGLangEngine) -> None:
    params = SamplingParams(0.0, 1.0, 48)
    requests = real_requests(prompts=6, samples=1)
    local = LocalEngine(TINY_MODEL, vocab_limit=LIMIT, stop_tokens=STOPS)
    expected, found = local.generate(requests, params), engine.generate(requests, params)
    assert tokens_of(found) == tokens_of(expected)
    assert [c.finish_reason for c in found] == [c.finish_reason for c in expected]


def test_seeds_decide_whatever_the_company(engine: SGLangEngine) -> None:
    """Rounding differs with the batch (1e-6 of a probability): a draw could fall otherwise, but none does."""
    requests = real_requests(prompts=3, samples=4)
    alike = tokens_of(engine.generate(requests, PARAMS))
    assert len(set(alike.values())) == len(requests), "samples of one prompt differ"
    assert tokens_of(engine.generate(requests[::-1], PARAMS)) == alike
    for request in requests[:3]:
        assert engine.generate([request], PARAMS)[0].tokens == alike[request.id]
    engine.servers[0].flush_cache().result()
    company = real_requests(prompts=5, samples=4, length=20, purpose="others")
    renamed = [Request(f"other {request.id}", request.prompt_tokens, request.seed) for request in company]
    assert tokens_of(engine.generate([*renamed, *requests], PARAMS)).items() >= alike.items()


def test_first_tokens_are_distributed_as_the_model_says(engine: SGLangEngine, model: torch.nn.Module) -> None:
    """Chi-square over the first token of 1500 requests, within 4 standard deviations of its mean."""
    prompt = real_requests()[0].prompt_tokens
    requests = [Request(str(seed), prompt, seed * 7919) for seed in range(1500)]
    completions = engine.generate(requests, SamplingParams(3.0, 1.0, 1))
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, -1].double()
    expected = torch.softmax(logits / 3.0, -1) * 1500
    found = torch.bincount(torch.tensor([c.tokens[0] for c in completions]), minlength=SIZE)
    common = expected >= 5
    statistic = float(((found - expected)[common] ** 2 / expected[common]).sum())
    bins = int(common.sum())
    assert bins > 15
    assert statistic < bins + 4 * (2 * bins) ** 0.5


def test_finish_reasons_and_end_tokens(engine: SGLangEngine) -> None:
    completions = engine.generate(real_requests(prompts=6, samples=6), SamplingParams(1.0, 1.0, 24))
    assert {completion.finish_reason for completion in completions} == {"stop", "length"}
    for completion in completions:
        assert not set(completion.tokens[:-1]) & set(STOPS)
        assert (completion.finish_reason == "stop") == (completion.tokens[-1] in STOPS)
        assert completion.finish_reason == "stop" or len(completion.tokens) == 24
        assert completion.version_spans == (VersionSpan(0, len(completion.tokens)),)


def test_a_stop_token_of_our_own(sglang_endpoint: Endpoint, engine: SGLangEngine) -> None:
    requests = real_requests()
    plain = engine.generate(requests, PARAMS)
    stop = plain[0].tokens[4]
    extended = SGLangEngine([sglang_endpoint], vocab_size=SIZE, vocab_limit=LIMIT, stop_tokens=(*STOPS, stop))
    cut = extended.generate(requests, PARAMS)
    extended.close()
    assert cut[0].finish_reason == "stop"
    assert cut[0].tokens[-1] == stop
    for short, long in zip(cut, plain, strict=True):
        assert short.tokens == long.tokens[: len(short.tokens)]


def test_an_end_token_of_the_model_folder_that_was_not_given_is_named(sglang_endpoint: Endpoint) -> None:
    engine = SGLangEngine([sglang_endpoint], vocab_size=SIZE, stop_tokens=(1,))
    with pytest.raises(EngineError, match=r"finish_reason.*'matched': 61[35].*stop tokens \[1\]"):
        engine.generate(real_requests(prompts=2, samples=8), SamplingParams(1.0, 1.0, 200))
    engine.close()


def test_without_stop_tokens_responses_run_to_the_length(sglang_endpoint: Endpoint) -> None:
    engine = SGLangEngine([sglang_endpoint], vocab_size=SIZE, stop_tokens=())
    completions = engine.generate(real_requests(), SamplingParams(1.0, 1.0, 60))
    engine.close()
    assert {(len(c.tokens), c.finish_reason) for c in completions} == {(60, "length")}


def test_a_request_that_is_too_long_is_named(engine: SGLangEngine) -> None:
    request = Request("long one", tuple(range(500)), 1)
    with pytest.raises(EngineError, match=r"'long one'.*status 400.*context length of 1024"):
        engine.generate([request], SamplingParams(1.0, 1.0, 600))
    becomes_idle(engine)


def test_a_prompt_is_computed_once_for_all_its_samples(
    engine: SGLangEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's own count of cached tokens, with enough prompts at once that samples meet in one batch."""
    engine.servers[0].flush_cache().result()
    http, cached = engine._loop.http, []
    original = http.request_json

    async def recorded(*args: Any, **options: Any) -> dict[str, Any]:
        reply = await original(*args, **options)
        meta = reply["meta_info"]
        cached.append((meta["completion_tokens"] == 0, meta["prompt_tokens"] - meta["cached_tokens"]))
        return reply

    monkeypatch.setattr(http, "request_json", recorded)
    requests = real_requests(prompts=6, samples=8, length=200, purpose="prefix")
    engine.generate(requests, SamplingParams(1.0, 1.0, 8))
    primes = [computed for prime, computed in cached if prime]
    samples = [computed for prime, computed in cached if not prime]
    assert len(primes) == 6
    assert min(primes) >= 200
    assert samples == [1] * 48, "each sample computes the last prompt token only"


def test_cancellation_leaves_the_server_idle(sglang_endpoint: Endpoint) -> None:
    engine = SGLangEngine([sglang_endpoint], vocab_size=SIZE, stop_tokens=())
    generation = engine.submit(real_requests(), SamplingParams(1.0, 1.0, 900))
    wait_until(lambda: running(engine) == 12, 60)
    generation.cancel()
    becomes_idle(engine)
    engine.close()


def test_stragglers_are_cut_off_and_leave_the_server_idle(
    sglang_endpoint: Endpoint, model: torch.nn.Module
) -> None:
    settings = SamplerSettings(straggler_timeout_s=1.0)
    engine = SGLangEngine([sglang_endpoint], vocab_size=SIZE, stop_tokens=(), settings=settings)
    requests = real_requests(prompts=2, samples=2)
    completions = engine.generate(requests, SamplingParams(1.0, 1.0, 950))
    becomes_idle(engine)
    engine.close()
    for request, completion in zip(requests, completions, strict=True):
        assert completion.finish_reason == "abort"
        assert 1 <= len(completion.tokens) < 950
        expected = full_forward_log_probs(model, request.prompt_tokens, completion.tokens, 1.0)
        assert completion.log_probs == pytest.approx(expected, abs=1e-4)


def test_completions_are_plain_python_values(engine: SGLangEngine) -> None:
    completion: Completion = engine.generate(real_requests(1, 1), PARAMS)[0]
    assert {type(value) for value in completion.tokens} == {int}
    assert {type(value) for value in completion.log_probs} == {float}


def test_a_wrong_key_is_named(sglang_endpoint: Endpoint) -> None:
    wrong = SGLangEngine([Endpoint(sglang_endpoint.url, 1, "wrong")], vocab_size=SIZE, stop_tokens=STOPS)
    with pytest.raises(EngineError, match=r"'0/0'.*status 401(?s:.*)api_key_file"):
        wrong.generate(real_requests(1, 1), PARAMS)
    with pytest.raises(EngineError, match=r"pause: .*status 401"):
        wrong.servers[0].pause("abort").result()
    wrong.close()
