"""Updating the local engine's weights: the new ones are used, and a mixture never is."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron_srpo.errors import EngineError, WeightError
from megatron_srpo.rollout.local import LocalEngine
from megatron_srpo.rollout.types import SamplingParams
from tests.model.tiny import EXPERTS, random_qwen3, stored_tensors
from tests.rollout.models import EOS, make_requests, write_model

PARAMS = SamplingParams(1.0, 1.0, 10)
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
A_NAME = "model.layers.1.self_attn.q_norm.weight"


def other_weights(**overrides: bool) -> dict[str, Tensor]:
    """Full tensors of another random model of the same config, tied head left out."""
    return {name: value.detach() for name, value in random_qwen3(seed=9, **overrides).named_parameters()}


@pytest.fixture
def engine(model_folder: Path) -> LocalEngine:
    return LocalEngine(model_folder)


def test_a_new_version_answers_as_an_engine_that_loaded_it(engine: LocalEngine, tmp_path: Path) -> None:
    requests = make_requests()
    before = engine.generate(requests, PARAMS)
    weights = other_weights()
    engine.update_weights(iter(sorted(weights.items(), reverse=True)), 3)
    after = engine.generate(requests, PARAMS)
    write_model(tmp_path, seed=9)
    expected = LocalEngine(tmp_path).generate(requests, PARAMS)
    assert engine.weight_version == 3
    assert {completion.weight_version for completion in after} == {3}
    assert [c.tokens for c in after] == [c.tokens for c in expected]
    assert [c.log_probs for c in after] == [c.log_probs for c in expected]
    assert [c.tokens for c in before] != [c.tokens for c in after]


def test_experts_are_taken_under_the_names_of_the_files(tmp_path: Path) -> None:
    """transformers joins a layer's experts into two tensors, which no file and no trainer has."""
    folders = [write_model(tmp_path / str(seed), seed=seed, **EXPERTS) for seed in (3, 9)]
    engine = LocalEngine(folders[0])
    requests = make_requests()
    before = engine.generate(requests, PARAMS)
    weights = stored_tensors(folders[1])
    engine.update_weights(iter(weights.items()), 1)
    expected = LocalEngine(folders[1]).generate(requests, PARAMS)
    after = engine.generate(requests, PARAMS)
    assert [c.tokens for c in after] == [c.tokens for c in expected] != [c.tokens for c in before]
    assert [c.log_probs for c in after] == [c.log_probs for c in expected]
    weights.pop("model.layers.1.mlp.experts.3.up_proj.weight")
    with pytest.raises(EngineError, match=r"1 tensors are missing: .*layers\.1\.mlp\.experts\.3\.up_proj"):
        engine.update_weights(iter(weights.items()), 2)


def test_the_engine_keeps_copies(engine: LocalEngine) -> None:
    weights = {name: value.clone() for name, value in other_weights().items()}
    engine.update_weights(iter(weights.items()), 1)
    requests = make_requests()
    before = engine.generate(requests, PARAMS)
    for value in weights.values():
        value.zero_()
    assert engine.generate(requests, PARAMS) == before


def test_weights_are_cast_to_the_engines_type(model_folder: Path) -> None:
    engine = LocalEngine(model_folder, torch.bfloat16)
    weights = other_weights()
    engine.update_weights(iter(weights.items()), 1)
    held = dict(engine.model.named_parameters())
    assert all(torch.equal(held[name], value.bfloat16()) for name, value in weights.items())


@pytest.mark.parametrize("given", [(EMBEDDING,), (HEAD,), (EMBEDDING, HEAD), (HEAD, EMBEDDING)])
def test_a_tied_head_may_be_given_or_not(tied_folder: Path, tmp_path: Path, given: tuple[str, ...]) -> None:
    weights = other_weights(tie_word_embeddings=True)
    table = weights.pop(EMBEDDING)
    assert HEAD not in weights
    engine = LocalEngine(tied_folder)
    engine.update_weights(iter([*weights.items(), *((name, table) for name in given)]), 1)
    write_model(tmp_path, seed=9, tie_word_embeddings=True)
    requests = make_requests()
    expected = LocalEngine(tmp_path).generate(requests, PARAMS)
    assert [c.log_probs for c in engine.generate(requests, PARAMS)] == [c.log_probs for c in expected]


def test_a_tied_head_that_differs_is_refused(tied_folder: Path) -> None:
    weights = other_weights(tie_word_embeddings=True)
    weights[HEAD] = weights[EMBEDDING] + 1
    with pytest.raises(EngineError, match=f"{HEAD} differs from {EMBEDDING}"):
        LocalEngine(tied_folder).update_weights(iter(weights.items()), 1)


def without_a_tensor() -> Iterator[tuple[str, Tensor]]:
    return iter([(name, value) for name, value in other_weights().items() if name != A_NAME])


def with_an_unknown_tensor() -> Iterator[tuple[str, Tensor]]:
    return iter([*other_weights().items(), ("model.layers.2.mlp.up_proj.weight", torch.zeros(1))])


def with_a_wrong_shape() -> Iterator[tuple[str, Tensor]]:
    return iter({**other_weights(), A_NAME: torch.zeros(17)}.items())


def with_a_second_value() -> Iterator[tuple[str, Tensor]]:
    return iter([*other_weights().items(), (A_NAME, torch.zeros(16))])


def that_breaks_off() -> Iterator[tuple[str, Tensor]]:
    yield from list(other_weights().items())[:3]
    raise WeightError("the source went away")


FAILURES = {
    "missing": (without_a_tensor, EngineError, f"1 tensors are missing: {A_NAME}"),
    "unknown": (with_an_unknown_tensor, EngineError, r"no tensor 'model\.layers\.2\.mlp\.up_proj\.weight'"),
    "shape": (with_a_wrong_shape, EngineError, rf"{A_NAME} has shape \(17,\), expected \(16,\)"),
    "twice": (with_a_second_value, EngineError, f"{A_NAME} differs from {A_NAME}"),
    "source": (that_breaks_off, WeightError, "the source went away"),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_a_failed_update_stops_generation_until_a_good_one(engine: LocalEngine, kind: str) -> None:
    tensors, error, message = FAILURES[kind]
    with pytest.raises(error, match=message):
        engine.update_weights(tensors(), 5)
    assert engine.weight_version == 0
    with pytest.raises(EngineError, match=r"mixture of weights.*last good version 0"):
        engine.generate(make_requests(), PARAMS)
    engine.update_weights(iter(other_weights().items()), 5)
    assert engine.generate(make_requests(), PARAMS)[0].weight_version == 5


def test_an_older_version_is_refused_and_changes_nothing(engine: LocalEngine) -> None:
    engine.update_weights(iter(other_weights().items()), 4)
    requests = make_requests()
    before = engine.generate(requests, PARAMS)
    with pytest.raises(EngineError, match="weight version 3 is older than the engine's 4"):
        engine.update_weights(iter(()), 3)
    assert engine.generate(requests, PARAMS) == before


def test_the_end_token_survives_an_update(engine: LocalEngine) -> None:
    engine.update_weights(iter(other_weights().items()), 1)
    completions = engine.generate(make_requests(prompts=6, samples=8), SamplingParams(1.0, 1.0, 60))
    assert EOS in {completion.tokens[-1] for completion in completions}
