"""The algorithm-blind loss: per-token streams, log-probs and divergences to one number.

loss = sum token_weights * importance_weights * (policy_mask * policy_loss
       + distill_mask * distill_weights * ratio * divergence) / denominator   (docs/algorithms.md, section 6)

Shape suffixes: R response tokens of a micro-batch, D those of them that are distilled, K teacher head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import torch
from torch import Tensor

from megatron_srpo.algorithms.token_losses import clipped_policy_loss, k3_divergence
from megatron_srpo.algorithms.types import TokenStreams
from megatron_srpo.algorithms.weights import capped_ratio
from megatron_srpo.config.algorithm import AlgorithmConfig, DistillationConfig
from megatron_srpo.ops import (
    VocabShard,
    sampled_token_divergence,
    vocab_parallel_divergence,
    vocab_parallel_topk_divergence,
)
from megatron_srpo.training.heads import Head
from megatron_srpo.training.microbatches import MicroBatch, TokenSequence
from megatron_srpo.training.teacher import Lesson

T = TypeVar("T")

# What the loss reports of each micro-batch, as sums over tokens; the trainer divides.
SUM_NAMES = (
    "policy_loss",
    "distill_loss",
    "divergence",
    "policy_tokens",
    "distill_tokens",
    "distill_weight",
    "clipped_low",
    "clipped_high",
    "dual_clipped",
    "kl_old_new",
    "kl_reference",
    "entropy",
    "routed_tokens",
)


@dataclass(frozen=True)
class TrainingSample:
    """One rollout, ready for the loss. Tensors of shape [R]; ``lesson`` where it is distilled."""

    sequence: TokenSequence
    streams: TokenStreams
    old_R: Tensor
    reference_R: Tensor | None = None
    lesson: Lesson | None = None


@dataclass(frozen=True)
class StepScale:
    """Numbers counted over the whole optimizer step and all replicas before the first micro-batch.

    Attributes:
        denominator: sum of the routed tokens' weights; what the loss is divided by.
        distill_scale: brings the mean of ``distill_weights`` over distilled tokens to 1.
        largest_weight: the largest of those weights, after scaling; 0 where nothing is distilled.
    """

    denominator: float
    distill_scale: float
    largest_weight: float


class StepLoss:
    """The loss of one optimizer step, called per micro-batch by the pipeline schedule."""

    def __init__(
        self,
        samples: Sequence[TrainingSample],
        scale: StepScale,
        head: Head | None,
        teacher_head: Head | None,
        config: AlgorithmConfig,
    ) -> None:
        """``head`` and ``teacher_head`` exist on the last pipeline stage only, where the loss is called."""
        self.samples = samples
        self.scale = scale
        self.head = head
        self.teacher_head = teacher_head
        self.config = config

    def __call__(self, hidden_RH: Tensor, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Return this micro-batch's part of the loss and its vector of sums (order of ``SUM_NAMES``)."""
        head = _required(self.head)
        streams = self._streams(batch)
        old_R = batch.gather([sample.old_R for sample in self.samples])
        logits_RV = head.logits(hidden_RH)
        scores = head.scores(logits_RV, batch.target_R, entropy=True)
        assert scores.entropy_T is not None
        policy_R, sums = self._policy(scores.log_prob_T, scores.entropy_T, old_R, streams, batch)
        distill_R, more = self._distill(logits_RV, scores.log_prob_T, old_R, streams, batch)
        common_R = streams.token_weights * streams.importance_weights
        routed_R = streams.policy_mask + streams.distill_mask
        sums |= more | {
            "policy_loss": (common_R * policy_R).sum(),
            "distill_loss": (common_R * distill_R).sum(),
            "policy_tokens": streams.policy_mask.sum(),
            "distill_tokens": streams.distill_mask.sum(),
            "routed_tokens": routed_R.sum(),
            "entropy": (scores.entropy_T * routed_R).sum(),
            "kl_old_new": (k3_divergence(old_R, scores.log_prob_T) * routed_R).sum(),
        }
        loss = (common_R * (policy_R + distill_R)).sum() / self.scale.denominator
        return loss, torch.stack([sums[name].detach().double() for name in SUM_NAMES])

    def _streams(self, batch: MicroBatch) -> TokenStreams:
        per_sample = [sample.streams for sample in self.samples]
        return TokenStreams(
            **{
                field.name: batch.gather([streams.__dict__[field.name] for streams in per_sample])
                for field in fields(TokenStreams)
            }
        )

    def _policy(
        self,
        log_prob_R: Tensor,
        entropy_R: Tensor,
        old_R: Tensor,
        streams: TokenStreams,
        batch: MicroBatch,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        config, mask_R = self.config.policy, streams.policy_mask
        clipped = clipped_policy_loss(
            log_prob_R, old_R, streams.advantages, config.clip_low, config.clip_high, config.dual_clip
        )
        loss_R = clipped.loss_R
        if config.entropy_coefficient > 0:
            loss_R = loss_R - config.entropy_coefficient * entropy_R
        kl_reference = torch.zeros((), dtype=loss_R.dtype, device=loss_R.device)
        if config.kl_coefficient > 0:
            reference_R = batch.gather([_required(sample.reference_R) for sample in self.samples])
            kl_R = k3_divergence(log_prob_R, reference_R)
            loss_R = loss_R + config.kl_coefficient * kl_R
            kl_reference = (kl_R * mask_R).sum()
        sums = {
            "clipped_low": (clipped.clipped_low_R * mask_R).sum(),
            "clipped_high": (clipped.clipped_high_R * mask_R).sum(),
            "dual_clipped": (clipped.dual_clipped_R * mask_R).sum(),
            "kl_reference": kl_reference,
        }
        return mask_R * loss_R, sums

    def _distill(
        self,
        logits_RV: Tensor,
        log_prob_R: Tensor,
        old_R: Tensor,
        streams: TokenStreams,
        batch: MicroBatch,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return weighted divergences on distilled tokens, 0 elsewhere."""
        loss_R = torch.zeros_like(log_prob_R)
        rows_D = streams.distill_mask.nonzero().flatten()
        if rows_D.numel() == 0:
            return loss_R, {"divergence": loss_R.sum(), "distill_weight": loss_R.sum()}
        divergence_D = self._divergence(logits_RV[rows_D], log_prob_R[rows_D], batch)
        ratio_D = capped_ratio(log_prob_R.detach(), old_R, self.config.distillation.importance_cap)[rows_D]
        weight_D = streams.distill_weights[rows_D] * self.scale.distill_scale
        loss_R = loss_R.index_add(0, rows_D, weight_D * ratio_D * divergence_D)
        return loss_R, {"divergence": divergence_D.sum(), "distill_weight": weight_D.sum()}

    def _divergence(self, logits_DV: Tensor, log_prob_D: Tensor, batch: MicroBatch) -> Tensor:
        lessons = [_required(self.samples[m].lesson) for m in batch.members if self._is_distilled(m)]
        if self.config.distillation.vocabulary == "sampled":
            teacher_D = torch.cat([lesson.scores.log_prob_R for lesson in lessons]).to(log_prob_D.device)
            return sampled_token_divergence(log_prob_D, teacher_D)
        assert self.teacher_head is not None
        with torch.no_grad():
            hidden_DK = torch.cat([_required(lesson.hidden_RK) for lesson in lessons])
            teacher_DV = self.teacher_head.logits(hidden_DK)
        return divergence(logits_DV, teacher_DV, self.config.distillation, _required(self.head).shard)

    def _is_distilled(self, member: int) -> bool:
        return bool(self.samples[member].streams.distill_mask.any())


def divergence(
    student_DV: Tensor, teacher_DV: Tensor, config: DistillationConfig, shard: VocabShard
) -> Tensor:
    """Return the configured divergence per token, differentiable in the student's logits."""
    if config.vocabulary == "full":
        return vocab_parallel_divergence(student_DV, teacher_DV, config.alpha, shard)
    return vocab_parallel_topk_divergence(
        student_DV, teacher_DV, config.alpha, min(config.top_k, shard.vocab_size), shard, tail=config.tail
    )


def _required(value: T | None) -> T:
    assert value is not None
    return value
