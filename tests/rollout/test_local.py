"""The local engine against transformers' own forward and generate()."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_srpo.rollout import decode, kv_cache
from megatron_srpo.rollout.local import LocalEngine, decode_order
from megatron_srpo.rollout.types import Completion, Request, SamplingParams
from tests.model.tiny import load_reference
from tests.rollout.models import EOS, VOCABULARY, full_forward_log_probs, make_requests, tokens_of

SAMPLED = SamplingParams(1.0, 1.0, 40)


@pytest.fixture(scope="module")
def engine(model_folder: Path) -> LocalEngine:
    return LocalEngine(model_folder)


@pytest.mark.parametrize("params", [SAMPLED, SamplingParams(0.7, 0.8, 40), SamplingParams(2.5, 1.0, 40)])
def test_log_probs_equal_an_uncached_forward(
    engine: LocalEngine, model_folder: Path, params: SamplingParams
) -> None:
    """1e-4: what is allowed between trainer and engine; fp32 rounding of log-probs here is about 1e-5."""
    model = load_reference(model_folder)
    requests = make_requests()
    for request, completion in zip(requests, engine.generate(requests, params), strict=True):
        expected = full_forward_log_probs(model, request.prompt_tokens, completion.tokens, params.temperature)
        assert completion.log_probs == pytest.approx(expected, abs=1e-4)


def test_log_probs_hold_through_growth_compaction_and_chunked_prefill(
    engine: LocalEngine, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests, params = make_requests(), SamplingParams(1.0, 1.0, 60)
    plain = engine.generate(requests, params)
    sizes = [len(completion.tokens) for completion in plain]
    assert len(set(sizes)) > 5, "rows must finish at different times for compaction to be exercised"
    selections = []
    select = kv_cache.BufferedLayer.batch_select_indices

    def counted(layer: kv_cache.BufferedLayer, indices: torch.Tensor) -> None:
        selections.append(len(indices))
        select(layer, indices)

    monkeypatch.setattr(kv_cache.BufferedLayer, "batch_select_indices", counted)
    monkeypatch.setattr(kv_cache, "GROWTH", 2)
    monkeypatch.setattr(decode, "PREFILL_TOKENS", 16)
    monkeypatch.setattr(decode, "COMPACT_BELOW", 1.0)
    cramped = engine.generate(requests, params)
    assert len(set(selections)) > 3
    assert tokens_of(cramped) == tokens_of(plain)
    model = load_reference(model_folder)
    for request, completion in zip(requests, cramped, strict=True):
        expected = full_forward_log_probs(model, request.prompt_tokens, completion.tokens, 1.0)
        assert completion.log_probs == pytest.approx(expected, abs=1e-4)


def test_equal_prompts_are_prefilled_once(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    prefilled: list[tuple[int, ...]] = []
    prefill = decode.DecodeBatch._prefill_chunk

    def recorded(batch: decode.DecodeBatch, prompts: list[tuple[int, ...]]) -> object:
        prefilled.extend(prompts)
        return prefill(batch, prompts)

    monkeypatch.setattr(decode.DecodeBatch, "_prefill_chunk", recorded)
    requests = make_requests(prompts=4, samples=5)
    engine.generate(requests, SamplingParams(1.0, 1.0, 2))
    assert sorted(prefilled) == sorted({request.prompt_tokens for request in requests})


def test_greedy_equals_generate(engine: LocalEngine, model_folder: Path) -> None:
    model = load_reference(model_folder)
    requests = make_requests(prompts=8, samples=1)
    for request, completion in zip(
        requests, engine.generate(requests, SamplingParams(0.0, 1.0, 24)), strict=True
    ):
        prompt = torch.tensor([request.prompt_tokens])
        out = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=24
        )
        assert completion.tokens == tuple(out[0, prompt.shape[1] :].tolist())
        expected = full_forward_log_probs(model, request.prompt_tokens, completion.tokens, 1.0)
        assert completion.log_probs == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    "arrange",
    [
        lambda requests: requests[::-1],
        lambda requests: requests[5:6],
        lambda requests: requests[3:] + make_requests(prompts=9, samples=4, purpose="others"),
    ],
    ids=["reversed", "alone", "in other company"],
)
def test_tokens_do_not_depend_on_the_company(
    engine: LocalEngine, arrange: Callable[[list[Request]], list[Request]]
) -> None:
    requests = make_requests()
    alike = tokens_of(engine.generate(requests, SAMPLED))
    others = arrange(requests)
    asked_again = {id(request): request.id for request in requests}
    answers = engine.generate(others, SAMPLED)
    compared = [
        (completion.tokens, alike[request.id])
        for request, completion in zip(others, answers, strict=True)
        if id(request) in asked_again
    ]
    assert compared
    assert all(left == right for left, right in compared)


@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_tokens_do_not_depend_on_the_batch_size(
    engine: LocalEngine, model_folder: Path, batch_size: int
) -> None:
    small = LocalEngine(model_folder, batch_size=batch_size)
    requests = make_requests()
    assert tokens_of(small.generate(requests, SAMPLED)) == tokens_of(engine.generate(requests, SAMPLED))


def test_seeds_make_samples_differ_and_repeat(engine: LocalEngine) -> None:
    requests = make_requests(prompts=2, samples=8)
    first, again = (tokens_of(engine.generate(requests, SAMPLED)) for _ in range(2))
    assert first == again
    assert len(set(first.values())) == 16


def test_first_tokens_are_distributed_as_the_model_says(engine: LocalEngine, model_folder: Path) -> None:
    """Chi-square over the first token of 4000 requests: 1.75 x 60 degrees of freedom is beyond 4 sigma."""
    prompt = (5, 9, 33)
    requests = [Request(str(seed), prompt, seed * 7919) for seed in range(4000)]
    completions = engine.generate(requests, SamplingParams(3.0, 1.0, 1))
    logits = load_reference(model_folder)(torch.tensor([prompt])).logits[0, -1].double()
    expected = torch.softmax(logits / 3.0, -1).detach() * 4000
    found = torch.bincount(torch.tensor([c.tokens[0] for c in completions]), minlength=VOCABULARY)
    common = expected >= 5
    statistic = float(((found - expected)[common] ** 2 / expected[common]).sum())
    assert common.sum() > 60
    assert statistic < 1.75 * int(common.sum())


def test_finish_reasons_and_end_tokens(engine: LocalEngine) -> None:
    completions = engine.generate(make_requests(prompts=6, samples=8), SamplingParams(1.0, 1.0, 12))
    assert {completion.finish_reason for completion in completions} == {"stop", "length"}
    for completion in completions:
        assert EOS not in completion.tokens[:-1]
        assert (completion.finish_reason == "stop") == (completion.tokens[-1] == EOS)
        assert completion.finish_reason == "stop" or len(completion.tokens) == 12
        assert len(completion.log_probs) == len(completion.tokens)
        assert completion.weight_version == 0


def test_an_end_token_in_the_last_place_is_a_stop(engine: LocalEngine) -> None:
    requests = make_requests()
    stopped = [c for c in engine.generate(requests, SAMPLED) if c.finish_reason == "stop"]
    length = len(stopped[0].tokens)
    again = engine.generate(requests, SamplingParams(1.0, 1.0, length))
    found = next(c for c in again if c.request_id == stopped[0].request_id)
    assert (found.tokens, found.finish_reason) == (stopped[0].tokens, "stop")


def test_several_stop_tokens(model_folder: Path) -> None:
    engine = LocalEngine(model_folder, stop_tokens=range(0, VOCABULARY, 3))
    completions = engine.generate(make_requests(), SAMPLED)
    assert all(c.tokens[-1] % 3 == 0 and all(t % 3 for t in c.tokens[:-1]) for c in completions)
    assert len({c.tokens[-1] for c in completions}) > 3


def test_no_stop_tokens_runs_to_the_length(model_folder: Path) -> None:
    engine = LocalEngine(model_folder, stop_tokens=())
    completions = engine.generate(make_requests(), SAMPLED)
    assert {(len(c.tokens), c.finish_reason) for c in completions} == {(40, "length")}


def test_stop_tokens_come_from_the_generation_config(tmp_path: Path, model_folder: Path) -> None:
    model = load_reference(model_folder)
    model.generation_config.eos_token_id = [11, 12]
    model.save_pretrained(tmp_path)
    completions = LocalEngine(tmp_path).generate(make_requests(), SAMPLED)
    ends = {c.tokens[-1] for c in completions if c.finish_reason == "stop"}
    assert ends
    assert ends <= {11, 12}


def test_vocabulary_limit_holds_and_log_probs_stay_whole(model_folder: Path) -> None:
    engine, model = LocalEngine(model_folder, vocab_limit=60), load_reference(model_folder)
    requests = make_requests()
    for request, completion in zip(requests, engine.generate(requests, SAMPLED), strict=True):
        assert max(completion.tokens) < 60
        expected = full_forward_log_probs(model, request.prompt_tokens, completion.tokens, 1.0)
        assert completion.log_probs == pytest.approx(expected, abs=1e-4)


def test_no_requests(engine: LocalEngine) -> None:
    assert engine.generate([], SAMPLED) == []


def test_answers_come_in_the_order_asked(engine: LocalEngine) -> None:
    requests = make_requests()[::-1]
    assert [c.request_id for c in engine.generate(requests, SAMPLED)] == [r.id for r in requests]


def test_progress_counts_every_request(model_folder: Path) -> None:
    engine, seen = LocalEngine(model_folder, batch_size=4), []
    requests = make_requests()
    engine.generate(requests, SAMPLED, lambda done, total: seen.append((done, total)))
    assert seen == [(done, 15) for done in range(1, 16)]


def test_bfloat16_log_probs_are_close(model_folder: Path) -> None:
    """bfloat16 keeps 8 bits and logits here reach about 10, so that one rounding is worth up to 0.03."""
    engine, model = LocalEngine(model_folder, torch.bfloat16), load_reference(model_folder)
    requests = make_requests()
    differences = [
        abs(found - expected)
        for request, completion in zip(requests, engine.generate(requests, SAMPLED), strict=True)
        for found, expected in zip(
            completion.log_probs,
            full_forward_log_probs(model, request.prompt_tokens, completion.tokens, 1.0),
            strict=True,
        )
    ]
    assert 0 < sum(differences) / len(differences) < 0.1


def test_decode_order_keeps_prompts_together_in_even_batches() -> None:
    requests = make_requests(prompts=5, samples=3)
    batches = decode_order(requests[::2] + requests[1::2], 8)
    assert sorted(place for batch in batches for place in batch) == list(range(15))
    assert [len(batch) for batch in batches] == [8, 7]
    ordered = requests[::2] + requests[1::2]
    lengths = [len(ordered[place].prompt_tokens) for batch in batches for place in batch]
    assert lengths == sorted(lengths)


def test_weights_survive_a_round_trip_through_transformers(engine: LocalEngine, model_folder: Path) -> None:
    """The engine's attention has a name of its own; under it the model must still be an ordinary one."""
    model = AutoModelForCausalLM.from_pretrained(model_folder, attn_implementation=kv_cache.ATTENTION)
    tokens = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    found = model(tokens, attention_mask=mask).logits[mask.bool()]
    expected = load_reference(model_folder)(tokens, attention_mask=mask).logits[mask.bool()]
    assert (found - expected).abs().max() < 1e-5  # same kernels, fp32


def test_completions_are_plain_python_values(engine: LocalEngine) -> None:
    completion: Completion = engine.generate(make_requests(1, 1), SAMPLED)[0]
    assert {type(value) for value in completion.tokens} == {int}
    assert {type(value) for value in completion.log_probs} == {float}
