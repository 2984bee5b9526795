"""The precision in which hidden states meet the head."""

import pytest
import torch

from megatron_srpo.config.algorithm import AlgorithmConfig
from megatron_srpo.model.forward import last_hidden_states
from megatron_srpo.model.head import head_weight
from megatron_srpo.model.packing import pack_tokens
from tests.model.tiny import write_random_qwen3
from tests.ranks import run_ranks
from tests.training.harness import Layout, fixed_rollouts, make_trainer, train_step


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_random_qwen3(tmp_path_factory.mktemp("model")))


def distance_from_float64(rank: int, world: int, folder: str, fp32_head: bool) -> float:
    """Largest difference of scored log-probs from a float64 product of the same bf16 numbers."""
    groups = Layout().initialize()
    algorithm = AlgorithmConfig(name="srpo")
    trainer = make_trainer(folder, groups, algorithm, dtype=torch.bfloat16, fp32_head=fp32_head)
    sequences = [rollout.sequence for rollout in fixed_rollouts()]
    scored = torch.cat([score.log_prob_R for score in trainer.score(sequences)])
    packed = pack_tokens([sequence.inputs for sequence in sequences])
    hidden_TH = last_hidden_states(trainer.policy, groups, packed)
    assert hidden_TH is not None
    weight_VH = head_weight(trainer.policy)[: trainer.form.shard.vocab_size].detach()
    exact_TV = (hidden_TH.double() @ weight_VH.double().T).log_softmax(-1)
    expected = []
    for start, sequence in zip(packed.starts, sequences, strict=True):
        first = start + len(sequence.prompt) - 1
        rows = exact_TV[first : first + len(sequence.response)]
        expected.append(rows.gather(1, torch.tensor(sequence.response)[:, None])[:, 0])
    return float((scored.double() - torch.cat(expected)).abs().max())


def test_an_fp32_head_does_not_round_logits(folder: str) -> None:
    """fp32 sums of 64 products; without it, a CPU rounds logits to bf16's 8 bits."""
    (rounded,) = run_ranks(1, distance_from_float64, folder, False)
    (exact,) = run_ranks(1, distance_from_float64, folder, True)
    assert exact < 1e-5 < 1e-3 < rounded


def trains(rank: int, world: int, folder: str) -> float:
    groups = Layout(tp=2, sequence=True).initialize()
    options = {"dtype": torch.bfloat16, "fp32_head": True}
    trainer = make_trainer(folder, groups, AlgorithmConfig(name="srpo"), **options)
    result = train_step(trainer, fixed_rollouts())
    assert result is not None
    return result.optimizer.grad_norm


def test_an_fp32_head_trains_a_bf16_model(folder: str) -> None:
    one, other = run_ranks(2, trains, folder)
    assert one == other > 0
