"""Dealing prompts to replicas, asking for responses, and joining them with their prompts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_srpo.rewards.types import Score
from megatron_srpo.rollout.types import MAX_SEED, Completion, VersionSpan
from megatron_srpo.session.rollouts import (
    PromptInPlace,
    ScoredBatch,
    make_rollouts,
    replica_share,
    sampling_requests,
)
from tests.data.tokenizer import byte_tokenizer
from tests.session.factories import make_batch, make_prompt, make_rollout

small = st.integers(min_value=1, max_value=6)


def in_place(places: list[int]) -> list[PromptInPlace]:
    return [PromptInPlace(make_prompt(place), place, (place, 7)) for place in places]


class TestReplicaShare:
    @pytest.mark.parametrize(
        ("rank", "expected"), [(0, [0, 2, 4, 6]), (1, [1, 3, 5, 7])], ids=["first", "second"]
    )
    def test_two_replicas(self, rank: int, expected: list[int]) -> None:
        assert replica_share(8, 4, rank, 2) == expected

    def test_one_replica_takes_everything_in_order(self) -> None:
        assert replica_share(6, 3, 0, 1) == list(range(6))

    @settings(deadline=None)
    @given(small, small, small)
    def test_every_prompt_goes_to_exactly_one_replica(self, batches: int, per_replica: int, dp: int) -> None:
        mini_batch = per_replica * dp
        size = batches * mini_batch
        shares = [replica_share(size, mini_batch, rank, dp) for rank in range(dp)]
        assert sorted(place for share in shares for place in share) == list(range(size))
        assert {len(share) for share in shares} == {batches * per_replica}

    @settings(deadline=None)
    @given(small, small, small)
    def test_a_mini_batch_holds_the_same_prompts_for_any_number_of_replicas(
        self, batches: int, per_replica: int, dp: int
    ) -> None:
        """The k-th optimizer step takes the k-th run of each replica's share."""
        mini_batch = per_replica * dp
        size = batches * mini_batch
        shares = [replica_share(size, mini_batch, rank, dp) for rank in range(dp)]
        for number in range(batches):
            run = slice(number * per_replica, (number + 1) * per_replica)
            together = sorted(place for share in shares for place in share[run])
            assert together == list(range(number * mini_batch, (number + 1) * mini_batch))


class TestSamplingRequests:
    def test_one_request_per_sample_in_order(self) -> None:
        requests = sampling_requests(in_place([4, 9]), samples=3, run_seed=1, step=5)
        assert [request.id for request in requests] == ["5/4/0", "5/4/1", "5/4/2", "5/9/0", "5/9/1", "5/9/2"]
        assert [request.prompt_tokens for request in requests] == [(4, 7)] * 3 + [(9, 7)] * 3
        assert all(0 <= request.seed <= MAX_SEED for request in requests)

    @settings(deadline=None)
    @given(small, small, small, st.integers(0, 1000))
    def test_seeds_do_not_depend_on_the_replicas(
        self, per_replica: int, dp: int, samples: int, step: int
    ) -> None:
        size = per_replica * dp
        alone = sampling_requests(in_place(list(range(size))), samples, 3, step)
        together = [
            request
            for rank in range(dp)
            for request in sampling_requests(in_place(replica_share(size, size, rank, dp)), samples, 3, step)
        ]
        assert sorted(together, key=lambda r: r.id) == sorted(alone, key=lambda r: r.id)

    def test_every_sample_step_place_and_run_has_its_own_seed(self) -> None:
        seeds = {
            request.seed
            for run_seed in (1, 2)
            for step in (0, 1)
            for request in sampling_requests(in_place([0, 1]), 4, run_seed, step)
        }
        assert len(seeds) == 2 * 2 * 2 * 4


class TestMakeRollouts:
    def completions(self, texts: list[str]) -> list[Completion]:
        tokenizer = byte_tokenizer()
        tokens = [(*tokenizer.encode(text), tokenizer.eos_token_id) for text in texts]
        return [
            Completion(str(i), ids, (-0.5,) * len(ids), "stop", (VersionSpan(3, len(ids)),))
            for i, ids in enumerate(tokens)
        ]

    def test_responses_meet_their_prompts(self) -> None:
        completions = self.completions(["a", "b", "c", "d"])
        rollouts = make_rollouts(in_place([4, 9]), 2, completions, byte_tokenizer())
        assert [(r.group, r.sample, r.text) for r in rollouts] == [
            (4, 0, "a"),
            (4, 1, "b"),
            (9, 0, "c"),
            (9, 1, "d"),
        ]
        assert [r.prompt.id for r in rollouts] == ["sums/4", "sums/4", "sums/9", "sums/9"]

    def test_tokens_stay_as_sampled_and_the_text_has_no_special_tokens(self) -> None:
        (rollout,) = make_rollouts(in_place([0]), 1, self.completions(["x"]), byte_tokenizer())
        assert rollout.sequence.prompt == (0, 7)
        assert rollout.sequence.response == rollout.completion.tokens
        assert rollout.sequence.response[-1] == byte_tokenizer().eos_token_id
        assert rollout.text == "x"
        assert rollout.log_prob_R.tolist() == [-0.5, -0.5]

    @pytest.mark.parametrize("count", [1, 3])
    def test_a_missing_or_superfluous_response_is_a_defect(self, count: int) -> None:
        with pytest.raises(ValueError, match="argument"):
            make_rollouts(in_place([0]), 2, self.completions(["x"] * count), byte_tokenizer())


class TestScoredBatch:
    def test_what_the_algorithm_is_given(self) -> None:
        batch = make_batch([(4, "a", 1.0), (4, "b", Score(0.0, feedback="Wrong.")), (9, "c", 0.25)])
        shown = torch.tensor([True, False, True])
        scored = batch.for_algorithm(shown)
        assert scored.reward_N.tolist() == [1.0, 0.0, 0.25]
        assert scored.reward_N.dtype == torch.float64
        assert scored.group_N.tolist() == [4, 4, 9]
        assert scored.has_feedback_N.tolist() == [False, True, False]
        assert scored.demonstrable_N is shown

    @pytest.mark.parametrize("feedback", [None, "", "  \n"])
    def test_an_empty_remark_is_no_feedback(self, feedback: str | None) -> None:
        batch = ScoredBatch([make_rollout(0, 0, "a")], [Score(0.0, feedback=feedback)])
        assert batch.for_algorithm(torch.tensor([True])).has_feedback_N.tolist() == [False]

    def test_sequences_keep_the_order(self) -> None:
        batch = make_batch([(4, "a", 1.0), (4, "bb", 0.0)])
        assert [len(sequence.response) for sequence in batch.sequences] == [2, 3]
