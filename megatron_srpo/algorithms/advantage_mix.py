"""SRPO's ablation (arXiv 2604.02288): mix the two signals in the advantage instead of routing samples.

A_t = lambda * A_GRPO + (1 - lambda) * A_SDPO,t with A_SDPO,t = log q(y_t) - log pi_old(y_t) on the sampled
token (the policy-gradient form of reverse-KL distillation; arXiv 2601.20802), 0 where the teacher has no
information.
"""

from dataclasses import dataclass

from torch import Tensor

from megatron_srpo.algorithms.routed import RoutedAlgorithm
from megatron_srpo.algorithms.types import BehaviourLogProbs, TeacherEvidence


@dataclass(frozen=True)
class AdvantageMix(RoutedAlgorithm):
    """All rollouts on the policy branch, with a teacher term in each token's advantage."""

    def needs_teacher(self, route_N: Tensor, information_N: Tensor) -> Tensor:
        """Every rollout with teacher information is re-scored."""
        return information_N

    def token_advantages(
        self, advantage: float, log_probs: BehaviourLogProbs, evidence: TeacherEvidence | None
    ) -> Tensor:
        """Mix the group advantage with the teacher's log-prob gain on each sampled token."""
        share = self.config.mix_lambda
        mixed_R = super().token_advantages(share * advantage, log_probs, evidence)
        if evidence is None:
            return mixed_R
        return mixed_R + (1.0 - share) * (evidence.log_prob_R - log_probs.old_R)
