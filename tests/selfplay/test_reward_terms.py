"""Every term of the Challenger's reward against sums by hand; what is permuted gets the same rewards."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_srpo.config.self_play import ChallengerRewardConfig
from megatron_srpo.selfplay.memory import MemoryBank
from megatron_srpo.selfplay.reward_terms import (
    RewardTerms,
    challenger_rewards,
    memory_penalty,
    repetition_penalty,
    uncertainty,
)
from tests.selfplay.banks import bank_of, entries, random_rows, unit_rows

pytest.importorskip("sklearn", reason="needs scikit-learn (make install-self-play)")

R_ZERO = ChallengerRewardConfig(repetition="bleu", memory=False, floor_at_zero=True)
R_DIVERSE = ChallengerRewardConfig()
CLOSE = {"rtol": 0, "atol": 1e-12}
#: Cosines from float32 vectors.
NEAR = {"rtol": 0, "atol": 1e-6}

# Cosines: 0-1: 0.8, 0-2: 0, 1-2: 0.6, 3 is at right angles to all.
SKILLS = unit_rows([[1, 0, 0], [0.8, 0.6, 0], [0, 1, 0], [0, 0, 1]])


def parts(terms: RewardTerms) -> list[np.ndarray]:
    return [terms.uncertainty, terms.repetition, terms.memory, terms.reward]


# -------------------- uncertainty


def test_uncertainty_in_both_forms() -> None:
    share_N = np.array([0.0, 0.1, 0.3, 0.5, 0.8, 1.0])
    np.testing.assert_allclose(uncertainty(share_N, "min"), [0, 0.1, 0.3, 0.5, 0.2, 0], **CLOSE)
    np.testing.assert_allclose(uncertainty(share_N, "tent"), [0, 0.2, 0.6, 1, 0.4, 0], **CLOSE)


def test_the_form_reaches_the_reward_and_no_answer_counts_as_no_share() -> None:
    config = ChallengerRewardConfig(uncertainty="tent", repetition="off", memory=False)
    terms = challenger_rewards(config, ["a", "b", "c"], [0.8, None, 0.5], None, None, 1)
    np.testing.assert_allclose(terms.reward, [0.4, 0, 1], **CLOSE)


# -------------------- repetition


def test_repetition_is_the_share_of_the_cluster_in_the_batch() -> None:
    """Distances: 0-1 0.2, 1-2 0.4, 0-2 1.0. 0 and 1 join; 2 is (0.4 + 1.0) / 2 = 0.7 from them."""
    distance_NN = 1 - np.array(SKILLS, np.float64) @ np.array(SKILLS, np.float64).T
    penalty = repetition_penalty(distance_NN, 0.5, ["a", "b", "c", "d"], batch=5)
    np.testing.assert_allclose(penalty, [2 / 5, 2 / 5, 1 / 5, 1 / 5], **CLOSE)


def test_skill_repetition_with_a_malformed_question_in_the_batch() -> None:
    config = ChallengerRewardConfig(memory=False, repetition_weight=0.5)
    rows = np.insert(SKILLS, 2, np.nan, axis=0)
    terms = challenger_rewards(config, ["a", "b", None, "c", "d"], [0.5, 0.4, None, 0.9, 0.3], rows, None, 1)
    np.testing.assert_allclose(terms.uncertainty, [0.5, 0.4, 0, 0.1, 0.3], **CLOSE)
    np.testing.assert_allclose(terms.repetition, [0.5 * 2 / 5] * 2 + [0] + [0.5 * 1 / 5] * 2, **CLOSE)
    np.testing.assert_allclose(terms.reward, [0.3, 0.2, -2, 0, 0.2], **CLOSE)


def test_repeated_questions_weigh_as_often_as_they_stand() -> None:
    """Distances: a-b 0.4, b-c 0.4, a-c 1.28."""
    rows = unit_rows([[1, 0], [0.6, 0.8], [-0.28, 0.96]])  # a-b 0.6, b-c 0.6, a-c -0.28
    config = ChallengerRewardConfig(memory=False, cluster_distance=0.75)
    once = challenger_rewards(config, ["a", "b", "c"], [0.5] * 3, rows, None, 1)
    # a-b and b-c tie at 0.4: a and b, first by text, join; c is (0.4 + 1.28) / 2 = 0.84 from them.
    np.testing.assert_allclose(once.repetition, [2 / 3, 2 / 3, 1 / 3], **CLOSE)
    thrice = challenger_rewards(config, ["a", "b", "b", "b", "c"], [0.5] * 5, rows[[0, 1, 1, 1, 2]], None, 1)
    # c is (3 x 0.4 + 1.28) / 4 = 0.62 from {a, b, b, b}.
    np.testing.assert_allclose(thrice.repetition, [1] * 5, **CLOSE)


def test_bleu_repetition() -> None:
    """Two of the same words but one of ten (BLEU 0.88), one that shares nothing."""
    ten = "one two three four five six seven eight nine"
    questions = [f"{ten} ten", f"{ten} eleven", "quite another matter here"]
    config = ChallengerRewardConfig(repetition="bleu", memory=False)
    terms = challenger_rewards(config, questions, [0.5, 0.5, 0.5], None, None, 1)
    np.testing.assert_allclose(terms.repetition, [2 / 3, 2 / 3, 1 / 3], **CLOSE)
    np.testing.assert_allclose(terms.reward, [0.5 - 2 / 3, 0.5 - 2 / 3, 0.5 - 1 / 3], **CLOSE)


def test_the_distance_of_a_cluster_is_configured() -> None:
    config = ChallengerRewardConfig(memory=False, cluster_distance=0.1)
    terms = challenger_rewards(config, list("abcd"), [0.5] * 4, SKILLS, None, 1)
    np.testing.assert_allclose(terms.repetition, [0.25] * 4, **CLOSE)


# -------------------- memory


def test_memory_penalty_by_hand() -> None:
    max_N, mean_N = np.array([0.4, 0.5, 0.9, 0.9, -1]), np.array([0.1, 0.45, 0.25, 0.65, -1])
    # 0.5 [max - 0.5]+ + 0.5 [mean - 0.25]+
    np.testing.assert_allclose(memory_penalty(max_N, mean_N, R_DIVERSE), [0, 0.1, 0.2, 0.4, 0], **CLOSE)
    config = ChallengerRewardConfig(
        max_weight=2, mean_weight=1, max_threshold=0.8, mean_threshold=0, malformed=-9
    )
    np.testing.assert_allclose(memory_penalty(max_N, mean_N, config), [0.1, 0.45, 0.45, 0.85, 0], **CLOSE)


def test_map_against_two_memories(tmp_path: Path) -> None:
    """Memory: e1 and e2. (0.6, 0.8, 0): max 0.8, mean 0.7. e3: max 0, mean 0. -e1: max 0, mean -0.5."""
    bank = bank_of(tmp_path, [[1, 0, 0], [0, 1, 0]])
    config = ChallengerRewardConfig(repetition="off")
    rows = unit_rows([[0.6, 0.8, 0], [0, 0, 1], [-1, 0, 0], [1, 0, 0]])
    terms = challenger_rewards(config, list("abcd"), [0.5, 0.5, 0.5, 0.3], rows, bank, 2)
    expected = [0.5 * 0.3 + 0.5 * 0.45, 0, 0, 0.5 * 0.5 + 0.5 * 0.25]
    np.testing.assert_allclose(terms.memory, expected, **NEAR)
    np.testing.assert_allclose(terms.reward, [0.5 - 0.375, 0.5, 0.5, 0.3 - 0.375], **NEAR)


def test_an_empty_memory_costs_nothing_even_with_thresholds_below_zero(tmp_path: Path) -> None:
    config = ChallengerRewardConfig(max_threshold=-1, mean_threshold=-1, malformed=-9)
    bank = MemoryBank.open(tmp_path, "by hand", 3)
    assert challenger_rewards(config, list("abcd"), [0.5] * 4, SKILLS, bank, 1).memory.tolist() == [0] * 4


def test_one_memory(tmp_path: Path) -> None:
    """Maximum and mean are the same cosine c: 0.5 [c - 0.5]+ + 0.5 [c - 0.25]+ with c = 1, 0.8, 0, 0."""
    bank = bank_of(tmp_path, [[1, 0, 0]])
    terms = challenger_rewards(R_DIVERSE, list("abcd"), [0.5] * 4, SKILLS, bank, 2)
    np.testing.assert_allclose(terms.memory, [0.625, 0.425, 0, 0], **NEAR)


def test_duplicates_in_the_memory_move_the_mean_alone(tmp_path: Path) -> None:
    """e1 three times and e2: e1 has mean 3/4, e2 1/4; both have maximum 1."""
    bank = bank_of(tmp_path, [[1, 0, 0], [0, 1, 0], [1, 0, 0], [1, 0, 0]])
    terms = challenger_rewards(R_DIVERSE, ["a", "c"], [0.5] * 2, SKILLS[[0, 2]], bank, 2)
    np.testing.assert_allclose(terms.memory, [0.25 + 0.5 * 0.5, 0.25], **NEAR)


def test_only_earlier_iterations_are_remembered(tmp_path: Path) -> None:
    bank = bank_of(tmp_path, [[1, 0, 0]], iteration=2)
    assert challenger_rewards(R_DIVERSE, ["a"], [0.5], SKILLS[:1], bank, 2).memory.tolist() == [0]
    assert challenger_rewards(R_DIVERSE, ["a"], [0.5], SKILLS[:1], bank, 3).memory[0] > 0.6


# -------------------- the whole


def test_r_diverse_by_hand(tmp_path: Path) -> None:
    """Batch of 5: a and b are one cluster, c and d alone, one malformed. Memory: e1."""
    bank = bank_of(tmp_path, [[1, 0, 0]])
    rows = np.insert(SKILLS, 4, 0, axis=0)
    terms = challenger_rewards(
        R_DIVERSE, ["a", "b", "c", "d", None], [0.5, 0.6, 1.0, None, 0.5], rows, bank, 2
    )
    expected = [0.5 - 2 / 5 - 0.625, 0.4 - 2 / 5 - 0.425, 0 - 1 / 5 - 0, 0 - 1 / 5 - 0, -2]
    np.testing.assert_allclose(terms.reward, expected, **NEAR)


def test_r_zero_by_hand(tmp_path: Path) -> None:
    """max(0, uncertainty - repetition); the memory plays no part, and a malformed question stays below 0."""
    bank = bank_of(tmp_path, [[1, 0, 0]])
    questions = ["one two three four five", "one two three four five", "quite another matter here", None]
    terms = challenger_rewards(R_ZERO, questions, [0.6, 0.6, 0.5, None], None, bank, 2)
    np.testing.assert_allclose(terms.repetition, [2 / 4, 2 / 4, 1 / 4, 0], **CLOSE)
    np.testing.assert_allclose(terms.reward, [0, 0, 0.25, -2], **CLOSE)
    assert terms.memory.tolist() == [0] * 4


def test_everything_off_leaves_the_uncertainty() -> None:
    config = ChallengerRewardConfig(repetition="off", memory=False)
    terms = challenger_rewards(config, ["same", "same"], [0.7, 0.7], None, None, 1)
    np.testing.assert_allclose(terms.reward, [0.3, 0.3], **CLOSE)


@pytest.mark.parametrize("questions", [[], [None], [None, None]])
def test_a_batch_without_questions(questions: list[None], tmp_path: Path) -> None:
    bank = bank_of(tmp_path, [[1, 0, 0]])
    rows = np.zeros((len(questions), 3), np.float32)
    terms = challenger_rewards(R_DIVERSE, questions, [None] * len(questions), rows, bank, 2)
    assert terms.reward.tolist() == [-2.0] * len(questions)


def test_skills_that_are_needed_and_missing_are_an_error() -> None:
    with pytest.raises(ValueError, match="no skill vectors were given"):
        challenger_rewards(R_DIVERSE, ["a"], [0.5], None, None, 1)


def test_all_parts_are_float64(tmp_path: Path) -> None:
    bank = bank_of(tmp_path, [[1, 0, 0]])
    for config in (R_ZERO, R_DIVERSE):
        terms = challenger_rewards(config, ["a", None], [1, None], SKILLS[:2], bank, 2)
        assert [part.dtype for part in parts(terms)] == [np.float64] * 4


def test_the_lowest_reward_that_the_config_promises_is_reached(tmp_path: Path) -> None:
    """A batch of one question over and over, all of it in the memory, and nobody is uncertain about it."""
    bank = bank_of(tmp_path, [[1, 0, 0]])
    terms = challenger_rewards(R_DIVERSE, ["a"] * 4, [1.0] * 4, SKILLS[[0] * 4], bank, 2)
    np.testing.assert_allclose(terms.reward, [R_DIVERSE.lowest] * 4, **NEAR)


# -------------------- permutations


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> MemoryBank:
    folder = tmp_path_factory.mktemp("bank")
    opened = MemoryBank.open(folder, "by hand", 9)
    opened.append(1, entries(1, 6), unit_rows(np.random.default_rng(1).normal(size=(6, 9)).tolist()))
    return opened


def ring_vectors(count: int) -> np.ndarray:
    """Each question as like its two neighbours as the next: ties everywhere."""
    return unit_rows(
        [[1.0 if k in (i, (i + 1) % count) else 0.0 for k in range(count)] for i in range(count)]
    )


def some_questions(picks: Sequence[int | None]) -> tuple[list[str | None], np.ndarray]:
    ring = ring_vectors(9)
    texts = [f"what comes {k} steps after {k + 1} in this ring of nine" for k in range(9)]
    rows = np.array([np.full(9, np.nan) if pick is None else ring[pick] for pick in picks]).reshape(-1, 9)
    return [None if pick is None else texts[pick] for pick in picks], rows


@settings(max_examples=60)
@given(
    picks=st.lists(st.none() | st.integers(0, 8), max_size=14),
    random=st.randoms(use_true_random=False),
    repetition=st.sampled_from(["skill", "bleu"]),
)
def test_permuted_batches_get_permuted_rewards_to_the_last_bit(
    bank: MemoryBank, picks: list[int | None], random: "np.random.Random", repetition: str
) -> None:
    config = ChallengerRewardConfig(repetition=repetition, cluster_distance=0.75)
    questions, rows = some_questions(picks)
    share = [None if question is None else random.randrange(11) / 10 for question in questions]
    straight = challenger_rewards(config, questions, share, rows, bank, 2)
    order = list(range(len(picks)))
    random.shuffle(order)
    permuted = challenger_rewards(
        config, [questions[k] for k in order], [share[k] for k in order], rows[order], bank, 2
    )
    for ours, theirs in zip(parts(permuted), parts(straight), strict=True):
        assert ours.tolist() == theirs[order].tolist()


@pytest.mark.parametrize("seed", range(8))
def test_matrix_products_do_not_round_by_place(seed: int, tmp_path: Path) -> None:
    """Long vectors and many questions: a product's last bits depend on the rows' places, as BLAS cuts it."""
    generator = np.random.default_rng(seed)
    rows, texts = random_rows(61, 389, seed), [f"question {number}" for number in range(61)]
    rows = unit_rows((rows + 3 * rows[0]).tolist())
    memory = MemoryBank.open(tmp_path, "by hand", 389)
    memory.append(1, entries(1, 97), unit_rows((random_rows(97, 389, 9) + rows[0]).tolist()))
    order = generator.permutation(61)
    straight = challenger_rewards(R_DIVERSE, texts, [0.5] * 61, rows, memory, 2)
    permuted = challenger_rewards(R_DIVERSE, [texts[k] for k in order], [0.5] * 61, rows[order], memory, 2)
    assert straight.memory.min() > 0
    assert permuted.reward.tolist() == straight.reward[order].tolist()
