"""The balancing loss of a mixture of experts: its gradient is that of transformers' router logits."""

from pathlib import Path

import torch
import torch.nn.functional as F

from megatron_srpo.config.algorithm import AlgorithmConfig
from megatron_srpo.config.training import OptimizerConfig
from megatron_srpo.model.parallel import initialize_parallel
from tests.model.tiny import EXPERTS, load_reference, write_random_qwen3
from tests.ranks import run_ranks
from tests.training.harness import fixed_rollouts, make_trainer, train_step

WEIGHT = 0.5
LAYERS = 2


def router_gradients(rank: int, world: int, folder: str, balances: list[float]) -> list[list[torch.Tensor]]:
    """Return, by weight of the balancing loss, the gradients of the routers after one optimizer step."""
    groups = initialize_parallel(1, 1)
    found = []
    for balance in balances:
        optimizer = OptimizerConfig(learning_rate=1e-3, grad_clip=0.0)
        trainer = make_trainer(folder, groups, AlgorithmConfig(name="grpo"), optimizer=optimizer)
        trainer.expert_balance = balance
        train_step(trainer, fixed_rollouts())
        parameters = dict(trainer.policy.module.named_parameters())
        names = [f"decoder.layers.{layer}.mlp.router.weight" for layer in range(LAYERS)]
        found.append([parameters[name].main_grad.clone() for name in names])
    return found


def reference_gradients(folder: Path) -> list[torch.Tensor]:
    """Differentiate the sum over layers of experts * sum(share of tokens * mean probability)."""
    model = load_reference(folder)
    # All of them are in the update's one micro-batch, those without an advantage too.
    sequences = [rollout.sequence.inputs for rollout in fixed_rollouts()]
    runs = [model(torch.tensor([tokens]), output_router_logits=True).router_logits for tokens in sequences]
    loss = torch.zeros(())
    for layer in range(LAYERS):
        probabilities_TE = torch.cat([run[layer] for run in runs]).softmax(-1)
        count, chosen = probabilities_TE.shape[1], EXPERTS["num_experts_per_tok"]
        picked_TE = F.one_hot(probabilities_TE.topk(chosen).indices, count).sum(1).float()
        loss = loss + count * (picked_TE.mean(0) / chosen * probabilities_TE.mean(0)).sum()
    (WEIGHT * loss).backward()
    return [model.model.layers[layer].mlp.gate.weight.grad for layer in range(LAYERS)]


def test_its_gradient_is_that_of_the_definition(tmp_path: Path) -> None:
    folder = write_random_qwen3(tmp_path, **EXPERTS)
    ((without, with_balance),) = run_ranks(1, router_gradients, str(folder), [0.0, WEIGHT])
    for off, on, expected in zip(without, with_balance, reference_gradients(folder), strict=True):
        assert expected.norm() > 1e-3
        # fp32: both gradients are differences of sums over some 300 tokens
        assert (on - off - expected).norm() / expected.norm() < 1e-4
