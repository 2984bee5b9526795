"""Log-probabilities, entropy and log-normaliser on vocabulary shards."""

from unittest import mock

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_srpo.errors import DataError
from megatron_srpo.ops import VocabShard, check_targets, vocab_parallel_entropy, vocab_parallel_log_prob
from tests.ops import reference
from tests.ops.harness import EDGES, Case, cases, check, large_saved_tensors
from tests.ranks import run_ranks

INF = float("inf")


@pytest.mark.parametrize("world", [1, 2, 4])
def test_matches_the_dense_reference_in_edge_cases(world: int) -> None:
    check("log_prob", world, EDGES)


@given(cases())
@settings(deadline=None, max_examples=60)
def test_matches_the_dense_reference(case: Case) -> None:
    check("log_prob", 1, [case])


@pytest.mark.parametrize("world", [2, 4])
@given(st.lists(cases(), min_size=4, max_size=12))
@settings(deadline=None, max_examples=4)
def test_sharded_matches_the_dense_reference(world: int, batch: list[Case]) -> None:
    check("log_prob", world, batch)


@pytest.mark.parametrize("entropy", [False, True])
def test_gradcheck(entropy: bool) -> None:
    shard, target = VocabShard(None, 5, 7), torch.tensor([0, 4, 2])

    def outputs(logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
        result = vocab_parallel_log_prob(logits, target, shard, entropy=entropy)
        return tuple(item for item in result if item is not None)

    assert torch.autograd.gradcheck(outputs, torch.randn(3, 7, dtype=torch.float64, requires_grad=True))


def test_entropy_is_computed_only_on_request() -> None:
    result = vocab_parallel_log_prob(torch.randn(2, 5), torch.tensor([0, 1]), VocabShard(None, 5, 5))
    assert result.entropy_T is None


def test_extreme_logits_stay_finite_and_exact() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [1e4, 1e4, -1e4], [-1e4, -1e4, -1e4]], requires_grad=True)
    result = vocab_parallel_log_prob(logits, torch.tensor([1, 0, 2]), VocabShard(None, 3, 3), entropy=True)
    assert result.entropy_T is not None
    # Differences of 1e4 are exact in float32; what remains is the log of 1, 2 and 3 equal terms.
    log2, log3 = torch.log(torch.tensor([2.0, 3.0])).tolist()
    torch.testing.assert_close(result.log_prob_T, torch.tensor([-2e4, -log2, -log3]))
    torch.testing.assert_close(result.entropy_T, torch.tensor([0.0, log2, log3]))
    torch.testing.assert_close(result.log_normaliser_T, torch.tensor([1e4, 1e4 + log2, -1e4 + log3]))
    (result.log_prob_T + result.entropy_T).sum().backward()
    third = 1 / 3
    expected = [[-1.0, 1.0, 0.0], [0.5, -0.5, 0.0], [-third, -third, 1 - third]]
    torch.testing.assert_close(logits.grad, torch.tensor(expected))


def test_entries_of_probability_zero() -> None:
    logits = torch.tensor([[0.0, -INF, 0.0, -INF]], requires_grad=True)
    shard = VocabShard(None, 4, 4)
    entropy = vocab_parallel_entropy(logits, shard)
    torch.testing.assert_close(entropy, torch.tensor([2.0]).log())
    (1000 * entropy).sum().backward()
    torch.testing.assert_close(logits.grad, torch.zeros(1, 4))
    log_prob = vocab_parallel_log_prob(logits.detach(), torch.tensor([1]), shard).log_prob_T
    assert log_prob.tolist() == [-INF]


@given(st.integers(1, 50), st.floats(-1e4, 1e4))
def test_entropy_lies_between_zero_and_log_of_the_vocabulary(vocab_size: int, value: float) -> None:
    shard = VocabShard(None, vocab_size, vocab_size + 3)
    flat = vocab_parallel_entropy(torch.full((1, vocab_size + 3), value), shard)
    torch.testing.assert_close(flat, torch.tensor([float(vocab_size)]).log())
    sure = torch.zeros(1, vocab_size + 3)
    sure[0, 0] = 1e4
    assert vocab_parallel_entropy(sure, shard).tolist() == [0.0]


def test_log_prob_is_at_most_zero_for_near_certain_tokens() -> None:
    logits = torch.tensor([[30.0, 0.0], [90.0, 0.0]])
    result = vocab_parallel_log_prob(logits, torch.tensor([0, 0]), VocabShard(None, 2, 2))
    assert (result.log_prob_T <= 0).all()


def test_bf16_logits_are_computed_in_float32() -> None:
    logits, target = torch.randn(3, 6).bfloat16(), torch.tensor([0, 3, 5])
    exact = logits.double()
    logits.requires_grad_()
    result = vocab_parallel_log_prob(logits, target, VocabShard(None, 6, 6), entropy=True)
    assert result.entropy_T is not None
    assert result.log_prob_T.dtype == result.entropy_T.dtype == torch.float32
    # Inputs are exact in float32: only its own rounding is left.
    expected = reference.log_prob(exact, target)
    torch.testing.assert_close(result.log_prob_T.double(), expected, rtol=1e-5, atol=1e-6)
    expected = reference.entropy(exact)
    torch.testing.assert_close(result.entropy_T.double(), expected, rtol=1e-5, atol=1e-6)
    result.log_prob_T.sum().backward()
    assert logits.grad is not None and logits.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("target", [-1, -100, 5, 6, 7, 10**6])
def test_an_id_outside_the_vocabulary_gives_nan_and_no_gradient(target: int) -> None:
    logits = torch.randn(2, 7, requires_grad=True)
    result = vocab_parallel_log_prob(logits, torch.tensor([target, 1]), VocabShard(None, 5, 7))
    assert torch.isnan(result.log_prob_T).tolist() == [True, False]
    result.log_prob_T.sum().backward()
    assert logits.grad is not None
    assert not logits.grad[0].any() and logits.grad[1, :5].all()


@pytest.mark.parametrize("bad", [-1, 5, 6])
def test_check_targets_names_the_id_and_its_place(bad: int) -> None:
    shard = VocabShard(None, 5, 7)
    check_targets(torch.tensor([[0, 4], [3, 1]]), shard)
    check_targets(torch.tensor([], dtype=torch.long), shard)
    with pytest.raises(DataError, match=rf"token id {bad} at position \(1, 0\) .* vocabulary of 5"):
        check_targets(torch.tensor([[0, 4], [bad, 1]]), shard)


def test_targets_of_a_wrong_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="one row of ids per token"):
        vocab_parallel_log_prob(torch.zeros(3, 5), torch.zeros(2, dtype=torch.long), VocabShard(None, 5, 5))
    with pytest.raises(ValueError, match=r"\(tokens, 5\)"):
        vocab_parallel_entropy(torch.zeros(3, 4), VocabShard(None, 5, 5))


def test_one_buffer_of_logits_size_is_kept_for_backward() -> None:
    shard, target = VocabShard(None, 50, 50), torch.tensor([1, 2, 3])

    def both(logits: torch.Tensor) -> torch.Tensor:
        result = vocab_parallel_log_prob(logits, target, shard, entropy=True)
        assert result.entropy_T is not None
        return result.log_prob_T + result.entropy_T

    assert large_saved_tensors(both) == 1


def reduced_elements(rank: int, world: int, tokens: int, vocab_size: int) -> tuple[list[int], list[int]]:
    """Sizes of the all-reduces of a forward and of a backward pass."""
    shard = VocabShard(dist.group.WORLD, vocab_size, vocab_size)
    logits = torch.randn(tokens, shard.local_size, requires_grad=True)
    with mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce) as spy:
        target = torch.zeros(tokens, dtype=torch.long)
        result = vocab_parallel_log_prob(logits, target, shard, entropy=True)
        forward = [call.args[0].numel() for call in spy.call_args_list]
        (result.log_prob_T + result.entropy_T).sum().backward()
        backward = [call.args[0].numel() for call in spy.call_args_list[len(forward) :]]
    return forward, backward


def test_only_a_few_numbers_per_token_are_reduced() -> None:
    for forward, backward in run_ranks(2, reduced_elements, 3, 1000):
        assert forward == [3, 9]  # the maximum; then logit, sum and entropy sum
        assert backward == []
