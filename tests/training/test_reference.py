"""A whole training step against an independent dense float64 implementation on transformers' Qwen3."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from megatron_srpo.config.algorithm import AlgorithmConfig, DistillationConfig, PolicyLossConfig
from megatron_srpo.config.training import OptimizerConfig
from tests.model.tiny import load_reference, write_random_qwen3
from tests.ranks import run_ranks
from tests.training.harness import FixedRollout, Layout, fixed_rollouts, steps_in_layout

TEMPERATURE = 0.8
OPTIMIZER = {
    "learning_rate": 1e-3,
    "warmup_steps": 0,
    "weight_decay": 0.1,
    "grad_clip": 0.5,
    "epsilon": 1e-4,
}

ALGORITHMS = {
    "grpo": AlgorithmConfig(
        name="grpo", policy=PolicyLossConfig(entropy_coefficient=0.02, kl_coefficient=0.05)
    ),
    "sdpo": AlgorithmConfig(name="sdpo", distillation=DistillationConfig(vocabulary="full", alpha=0.3)),
    "srpo": AlgorithmConfig(
        name="srpo", distillation=DistillationConfig(vocabulary="full", entropy_beta=0.7)
    ),
    "srpo top-k": AlgorithmConfig(name="srpo", distillation=DistillationConfig(top_k=12)),
    "advantage_mix": AlgorithmConfig(name="advantage_mix", mix_lambda=0.6),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model")
    return str(write_random_qwen3(path, tie_word_embeddings=True))


def response_logits(
    model: torch.nn.Module, prompt: tuple[int, ...], response: tuple[int, ...]
) -> torch.Tensor:
    """Logits that predict the response, [R, V]."""
    tokens = torch.tensor([[*prompt, *response]])
    return model(tokens).logits[0, len(prompt) - 1 : -1] / TEMPERATURE


def dense_divergence(
    student: torch.Tensor, teacher: torch.Tensor, config: DistillationConfig
) -> torch.Tensor:
    """Generalised Jensen-Shannon divergence per token from [R, V] logits."""
    p, q = student.softmax(-1), teacher.softmax(-1)
    if config.vocabulary == "topk":
        ids = student.topk(config.top_k).indices
        p, q = (torch.cat([x.gather(1, ids), 1 - x.gather(1, ids).sum(1, keepdim=True)], 1) for x in (p, q))
    a = config.alpha
    m = (1 - a) * p + a * q
    return (1 - a) * (p * (p / m).log()).sum(-1) + a * (q * (q / m).log()).sum(-1)


def dense_step(folder: str, algorithm: AlgorithmConfig, rollouts: list[FixedRollout]) -> dict[str, Any]:
    """Compute the step's loss by the formulas of docs/algorithms.md, then clip and apply AdamW."""
    model, frozen = load_reference(folder).double(), load_reference(folder).double()
    rewards = torch.tensor([r.reward for r in rollouts], dtype=torch.float64)
    groups = torch.tensor([r.group for r in rollouts])
    routed, weights, divergences, policies = [], [], [], []
    for index, rollout in enumerate(rollouts):
        members = groups == rollout.group
        others = members.clone()
        others[index] = False
        informed = bool((rewards[others] == 1).any())
        correct = rollout.reward == 1
        distil = informed and (
            algorithm.name == "sdpo" or (algorithm.name.startswith("srpo") and not correct)
        )
        if algorithm.name == "sdpo" and not informed:
            continue
        sequence, hinted = rollout.sequence, rollout.teacher_sequence
        student = response_logits(model, sequence.prompt, sequence.response)
        with torch.no_grad():
            teacher = response_logits(frozen, hinted.prompt, hinted.response).detach()
        chosen = torch.tensor(sequence.response)[:, None]
        log_prob = student.log_softmax(-1).gather(1, chosen)[:, 0]
        teacher_log_prob = teacher.log_softmax(-1).gather(1, chosen)[:, 0]
        importance = (log_prob.detach() - rollout.rollout_R.double()).exp().clamp(max=2)
        routed.append(len(sequence.response))
        if distil:
            entropy = -(teacher.softmax(-1) * teacher.log_softmax(-1)).sum(-1)
            weights.append((-algorithm.distillation.entropy_beta * entropy).exp())
            divergences.append(importance * dense_divergence(student, teacher, algorithm.distillation))
            continue
        advantage = (rewards[index] - rewards[members].mean()).expand(len(log_prob))
        if algorithm.name == "advantage_mix":
            gain = (teacher_log_prob - log_prob.detach()) if informed else 0.0
            advantage = algorithm.mix_lambda * advantage + (1 - algorithm.mix_lambda) * gain
        # On-policy the ratio is 1 and unclipped: its gradient is that of the log-prob.
        loss = -(log_prob - log_prob.detach()).exp() * advantage
        policy = algorithm.policy
        loss = loss + policy.entropy_coefficient * (student.softmax(-1) * student.log_softmax(-1)).sum(-1)
        difference = log_prob.detach() - log_prob  # the reference is the initial policy: k3 of equal models
        loss = loss + policy.kl_coefficient * (difference.exp() - 1 - difference)
        policies.append(importance * loss)
    total = torch.cat(policies).sum() if policies else torch.zeros((), dtype=torch.float64)
    if weights:
        flat = torch.cat(weights)
        total = total + (flat / flat.mean() * torch.cat(divergences)).sum()
    loss = total / sum(routed)
    loss.backward()
    return {"loss": float(loss), "tokens": sum(routed), **adamw(model)}


def adamw(model: torch.nn.Module) -> dict[str, Any]:
    """Clip at the global norm and take the first AdamW step; norms are not decayed."""
    parameters = dict(model.named_parameters())
    norm = torch.cat([p.grad.flatten() for p in parameters.values()]).norm()
    factor = min(1.0, OPTIMIZER["grad_clip"] / (float(norm) + 1e-6))
    rate = OPTIMIZER["learning_rate"]
    for parameter in parameters.values():
        gradient = parameter.grad * factor
        decay = OPTIMIZER["weight_decay"] if parameter.dim() > 1 else 0.0
        with torch.no_grad():
            parameter.mul_(1 - rate * decay)
            parameter.sub_(rate * gradient / (gradient.abs() + OPTIMIZER["epsilon"]))
    return {"grad_norm": float(norm), "weights": {name: p.detach() for name, p in parameters.items()}}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_step_equals_the_dense_float64_step(folder: str, name: str) -> None:
    algorithm = ALGORITHMS[name]
    options = {"optimizer": OptimizerConfig(**OPTIMIZER), "temperature": TEMPERATURE}
    got = run_ranks(2, steps_in_layout, folder, Layout(tp=2, capacity=200), algorithm, options)[0]
    expected = dense_step(folder, algorithm, fixed_rollouts())
    loss = (got["sums"]["policy_loss"] + got["sums"]["distill_loss"]) / got["denominator"]
    # fp32 against float64: forward and backward through the model round at about 1e-6.
    assert loss == pytest.approx(expected["loss"], rel=1e-5, abs=1e-6)
    assert got["denominator"] == expected["tokens"]
    assert got["grad_norms"][0] == pytest.approx(expected["grad_norm"], rel=1e-4)
    for key, tensor in expected["weights"].items():
        if key == "lm_head.weight":
            continue  # tied: the embedding under another name
        difference = (got["weights"][key].double() - tensor).norm() / tensor.norm()
        assert difference < 1e-5, (key, float(difference))
        # The step itself, not only the weights that it hardly moved.
        before = load_weights(folder)[key]
        moved = got["weights"][key].double() - before
        cosine = F.cosine_similarity(moved.flatten(), (tensor - before).flatten(), dim=0)
        assert cosine > 0.9999, (key, float(cosine))


def load_weights(folder: str) -> dict[str, torch.Tensor]:
    return {name: p.detach().double() for name, p in load_reference(folder).named_parameters()}
