"""The two operations of the benchmark of fused linear losses, written by us and by others.

Shapes: T tokens, H hidden size, V vocabulary.

Every variant maps the same inputs to the same scalar, to be differentiated down to the student's hidden
states and head: ``log-prob`` is the sum over tokens of weight x log-prob of the target; ``jsd`` is the mean
over tokens of the generalised Jensen-Shannon divergence (alpha 0.5) of student and teacher over the whole
vocabulary, where the teacher has hidden states and a head of its own. Rivals are called with their defaults,
as their own trainers or documents do.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_srpo.ops.fused_linear import (
    Divergence,
    TeacherSide,
    TokenTerms,
    fused_linear_log_prob,
    fused_linear_loss,
)
from megatron_srpo.ops.head import LinearHead
from megatron_srpo.ops.shard import VocabShard, math_dtype

LOG_PROB = "log-prob"
JSD = "jsd"
ALPHA = 0.5
#: Matrix products of T x H x V without which the operation cannot be done: logits, gradient of the hidden
#: states, gradient of the head; and the teacher's logits.
PRODUCTS = {LOG_PROB: 3, JSD: 4}
#: Standard deviation of the logits. Random heads of that scale give neither flat nor one-hot distributions.
_SPREAD = 2.0


class Unavailable(Exception):
    """A variant that this machine cannot run; the text says why."""


@dataclass(frozen=True)
class Shape:
    """Sizes, type and place of the inputs."""

    tokens: int
    hidden: int
    vocabulary: int
    dtype: torch.dtype
    device: str


@dataclass(frozen=True)
class Inputs:
    """What both operations start from. The two leaves that need gradients are the student's.

    Attributes:
        weights_T: in fp32; they are about 1 / T, all positive, so that the loss has no cancellation.
    """

    hidden_TH: Tensor
    weight_VH: Tensor
    teacher_hidden_TH: Tensor
    teacher_weight_VH: Tensor
    target_T: Tensor
    weights_T: Tensor

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return len(self.hidden_TH)

    def slice(self, tokens: int) -> "Inputs":
        """Return inputs of the first tokens, with leaves of their own that share memory with these."""
        first = slice(0, tokens)
        return Inputs(
            self.hidden_TH.detach()[first].requires_grad_(),
            self.weight_VH.detach().requires_grad_(),
            self.teacher_hidden_TH[first],
            self.teacher_weight_VH,
            self.target_T[first],
            self.weights_T[first],
        )

    def double(self) -> "Inputs":
        """Return the same numbers in float64, with leaves of their own."""
        changed = {name: item.detach().double() for name, item in vars(self).items() if name != "target_T"}
        for leaf in ("hidden_TH", "weight_VH"):
            changed[leaf].requires_grad_()
        return dataclasses.replace(self, **changed)

    def head_gradient(self) -> Tensor | None:
        """Return the head's gradient, from its accumulator where it has one."""
        return getattr(self.weight_VH, "main_grad", self.weight_VH.grad)

    def returned_bytes(self) -> int:
        """Return the size of the gradients that a pass made and handed out."""
        made = [self.hidden_TH.grad]
        if not hasattr(self.weight_VH, "main_grad"):
            made.append(self.weight_VH.grad)
        return sum(gradient.nbytes for gradient in made if gradient is not None)

    def forget_gradients(self) -> None:
        """Free the leaves' gradients, and clear the accumulator."""
        self.hidden_TH.grad = self.weight_VH.grad = None
        if hasattr(self.weight_VH, "main_grad"):
            self.weight_VH.main_grad.zero_()


def make_inputs(shape: Shape) -> Inputs:
    """Return random inputs, the same for the same shape."""
    generator = torch.Generator(shape.device).manual_seed(0)

    def normal(rows: int, scale: float) -> Tensor:
        made = torch.empty(rows, shape.hidden, dtype=shape.dtype, device=shape.device)
        return made.normal_(0.0, scale, generator=generator)

    place = {"generator": generator, "device": shape.device}
    head_scale = _SPREAD / math.sqrt(shape.hidden)
    return Inputs(
        normal(shape.tokens, 1.0).requires_grad_(),
        normal(shape.vocabulary, head_scale).requires_grad_(),
        normal(shape.tokens, 1.0),
        normal(shape.vocabulary, head_scale),
        torch.randint(shape.vocabulary, (shape.tokens,), **place),
        (0.5 + torch.rand(shape.tokens, **place)) / shape.tokens,
    )


Loss = Callable[[Inputs], Tensor]


@dataclass(frozen=True)
class Setting:
    """Where a variant is to run.

    Attributes:
        chunk: tokens per chunk of our operations; None is their own choice.
    """

    device: str
    chunk: int | None = None


Builder = Callable[[Setting], Loss]


def _logits(hidden_TH: Tensor, weight_VH: Tensor) -> Tensor:
    """All logits at once, in the math type."""
    return (hidden_TH @ weight_VH.t()).to(math_dtype(hidden_TH))


def plain_log_prob(inputs: Inputs) -> Tensor:
    """Plain PyTorch."""
    log_p_TV = F.log_softmax(_logits(inputs.hidden_TH, inputs.weight_VH), dim=-1)
    log_prob_T = log_p_TV.gather(1, inputs.target_T[:, None])[:, 0]
    return (log_prob_T * inputs.weights_T).sum()


def plain_jsd(inputs: Inputs) -> Tensor:
    """Plain PyTorch, with the mixture by ``logaddexp``: less memory than ``logsumexp`` of a stack."""
    log_s_TV = F.log_softmax(_logits(inputs.hidden_TH, inputs.weight_VH), dim=-1)
    with torch.no_grad():
        log_t_TV = F.log_softmax(_logits(inputs.teacher_hidden_TH, inputs.teacher_weight_VH), dim=-1)
    log_m_TV = torch.logaddexp(log_s_TV + math.log(1.0 - ALPHA), log_t_TV + math.log(ALPHA))
    student = F.kl_div(log_m_TV, log_s_TV, reduction="sum", log_target=True)
    teacher = F.kl_div(log_m_TV, log_t_TV, reduction="sum", log_target=True)
    return ((1.0 - ALPHA) * student + ALPHA * teacher) / inputs.tokens


PLAIN: Mapping[str, Loss] = {LOG_PROB: plain_log_prob, JSD: plain_jsd}


def _head(weight_VH: Tensor) -> LinearHead:
    return LinearHead(weight_VH, VocabShard(None, len(weight_VH), len(weight_VH)))


def _trained_head(weight_VH: Tensor) -> LinearHead:
    """The head as a trainer holds it: its gradient is added to an accumulator that is there anyway."""
    if not hasattr(weight_VH, "main_grad"):
        weight_VH.main_grad = torch.zeros_like(weight_VH, dtype=math_dtype(weight_VH))
    return dataclasses.replace(_head(weight_VH), main_grad_VH=weight_VH.main_grad)


def ours_log_prob(make_head: Callable[[Tensor], LinearHead]) -> Builder:
    """The gradient is formed in forward: three matrix products."""

    def build(setting: Setting) -> Loss:
        def loss(inputs: Inputs) -> Tensor:
            def weighted(rows: slice, terms: TokenTerms) -> Tensor:
                assert terms.log_prob_T is not None
                return (terms.log_prob_T * inputs.weights_T[rows]).sum()

            head = make_head(inputs.weight_VH)
            return fused_linear_loss(
                inputs.hidden_TH, head, weighted, target_T=inputs.target_T, chunk=setting.chunk
            )

        return loss

    return build


def ours_log_prob_recomputing(setting: Setting) -> Loss:
    """For any use of the log-probs: backward forms the logits again, four matrix products."""

    def loss(inputs: Inputs) -> Tensor:
        head = _head(inputs.weight_VH)
        found = fused_linear_log_prob(inputs.hidden_TH, head, inputs.target_T, chunk=setting.chunk)
        return (found.log_prob_T * inputs.weights_T).sum()

    return loss


def ours_jsd(make_head: Callable[[Tensor], LinearHead]) -> Builder:
    """The gradient is formed in forward: four matrix products."""

    def build(setting: Setting) -> Loss:
        def loss(inputs: Inputs) -> Tensor:
            def mean(rows: slice, terms: TokenTerms) -> Tensor:
                assert terms.divergence_T is not None
                return terms.divergence_T.sum() / inputs.tokens

            head, theirs = make_head(inputs.weight_VH), _head(inputs.teacher_weight_VH)
            teacher = TeacherSide(inputs.teacher_hidden_TH, theirs, Divergence(alpha=ALPHA))
            return fused_linear_loss(inputs.hidden_TH, head, mean, teacher=teacher, chunk=setting.chunk)

        return loss

    return build


def compiled(operation: str) -> Builder:
    """Plain PyTorch under ``torch.compile``."""

    def build(setting: Setting) -> Loss:
        return torch.compile(PLAIN[operation], dynamic=False)

    return build


def liger_log_prob(setting: Setting) -> Loss:
    """CUDA: fused linear cross-entropy, one loss per token. CPU: the chunked policy loss."""
    return _liger_cross_entropy() if setting.device == "cuda" else _liger_policy()


def _liger_cross_entropy() -> Loss:
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
    except ImportError as error:
        raise _missing("liger-kernel", error) from error
    per_token = LigerFusedLinearCrossEntropyLoss(reduction="none")

    def loss(inputs: Inputs) -> Tensor:
        nll_T = per_token(inputs.weight_VH, inputs.hidden_TH, inputs.target_T)
        return -(nll_T * inputs.weights_T).sum()

    return loss


def _liger_policy() -> Loss:
    """CISPO with nothing clipped: the mean of -advantage x log-prob. Sequences of one token, all at once."""
    try:
        from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss
    except ImportError as error:
        raise _missing("liger-kernel", error) from error

    def loss(inputs: Inputs) -> Tensor:
        policy = LigerFusedLinearGRPOLoss(
            beta=0.0,
            compiled=False,
            use_ref_model=False,
            chunk_size=inputs.tokens,
            epsilon_high=1.0,
            loss_type="cispo",
        )
        advantages_T = inputs.weights_T * -float(inputs.tokens)
        ids_T1 = inputs.target_T[:, None]
        found = policy(
            inputs.hidden_TH[:, None], inputs.weight_VH, ids_T1, torch.ones_like(ids_T1), advantages_T
        )
        return found[0]

    return loss


def liger_jsd(setting: Setting) -> Loss:
    """CUDA: the fused linear JSD in Triton. CPU: the chunked distillation loss, not compiled."""
    return _liger_fused_jsd() if setting.device == "cuda" else _liger_chunked_jsd(compile_chunks=False)


def liger_jsd_compiled(setting: Setting) -> Loss:
    """The chunked distillation loss as it comes: under ``torch.compile``."""
    return _liger_chunked_jsd(compile_chunks=True)


def _liger_fused_jsd() -> Loss:
    try:
        from liger_kernel.transformers import LigerFusedLinearJSD
    except ImportError as error:
        raise _missing("liger-kernel", error) from error
    fused = LigerFusedLinearJSD(jsd_beta=ALPHA)

    def loss(inputs: Inputs) -> Tensor:
        teacher = (inputs.teacher_hidden_TH, inputs.teacher_weight_VH)
        return fused(inputs.hidden_TH, inputs.weight_VH, *teacher, None)

    return loss


def _liger_chunked_jsd(compile_chunks: bool) -> Loss:
    try:
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss
    except ImportError as error:
        raise _missing("liger-kernel", error) from error
    chunked = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=ALPHA, compiled=compile_chunks
    )

    def loss(inputs: Inputs) -> Tensor:
        teacher = (inputs.teacher_hidden_TH, inputs.teacher_weight_VH)
        return chunked(inputs.hidden_TH, inputs.weight_VH, *teacher, inputs.target_T)

    return loss


def trl_log_prob(setting: Setting) -> Loss:
    """The head that TRL's GRPO trainer gives a model (``add_fused_lm_head``)."""
    try:
        from trl.kernels import ChunkedLogProbFunction
        from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as width
    except ImportError as error:
        raise _missing("trl", error) from error

    def loss(inputs: Inputs) -> Tensor:
        log_prob_T, *_ = ChunkedLogProbFunction.apply(
            inputs.hidden_TH, inputs.weight_VH, None, inputs.target_T, 1.0, width, None, 1.0, ("log_probs",)
        )
        return (log_prob_T * inputs.weights_T).sum()

    return loss


def trl_jsd(setting: Setting) -> Loss:
    """The loss of TRL's distillation trainer, from hidden states and heads."""
    try:
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
    except ImportError as error:
        raise _missing("trl", error) from error

    def loss(inputs: Inputs) -> Tensor:
        student = (inputs.hidden_TH, inputs.weight_VH, None)
        teacher = (inputs.teacher_hidden_TH, inputs.teacher_weight_VH, None)
        divergence_T, _ = ChunkedDivergenceFunction.apply(*student, *teacher, ALPHA)
        return divergence_T.sum() / inputs.tokens

    return loss


def trl_logits_log_prob(setting: Setting) -> Loss:
    """TRL's SDPO trainer: ``selective_log_softmax`` of all logits."""
    try:
        from trl.trainer.utils import selective_log_softmax
    except ImportError as error:
        raise _missing("trl", error) from error

    def loss(inputs: Inputs) -> Tensor:
        log_prob_T = selective_log_softmax(_logits(inputs.hidden_TH, inputs.weight_VH), inputs.target_T)
        return (log_prob_T * inputs.weights_T).sum()

    return loss


def trl_logits_jsd(setting: Setting) -> Loss:
    """TRL's SDPO trainer with the whole vocabulary: log-softmax and divergence of all logits."""
    try:
        from trl.experimental.sdpo.loss_utils import compute_divergence
    except ImportError as error:
        raise _missing("trl", error) from error

    def loss(inputs: Inputs) -> Tensor:
        log_s_TV = F.log_softmax(_logits(inputs.hidden_TH, inputs.weight_VH), dim=-1)
        with torch.no_grad():
            log_t_TV = F.log_softmax(_logits(inputs.teacher_hidden_TH, inputs.teacher_weight_VH), dim=-1)
        return compute_divergence(log_s_TV, log_t_TV, ALPHA).sum() / inputs.tokens

    return loss


def _missing(package: str, error: ImportError) -> Unavailable:
    return Unavailable(f"{package} is not installed ({error})")


#: By operation, every variant in the order of the table.
VARIANTS: Mapping[str, Mapping[str, Builder]] = {
    LOG_PROB: {
        "plain": lambda setting: plain_log_prob,
        "ours": ours_log_prob(_head),
        "ours-trained": ours_log_prob(_trained_head),
        "ours-recomputing": ours_log_prob_recomputing,
        "compile": compiled(LOG_PROB),
        "liger": liger_log_prob,
        "trl": trl_log_prob,
        "trl-logits": trl_logits_log_prob,
    },
    JSD: {
        "plain": lambda setting: plain_jsd,
        "ours": ours_jsd(_head),
        "ours-trained": ours_jsd(_trained_head),
        "compile": compiled(JSD),
        "liger": liger_jsd,
        "liger-compiled": liger_jsd_compiled,
        "trl": trl_jsd,
        "trl-logits": trl_logits_jsd,
    },
}
#: Those that compile at the first pass of a shape.
COMPILING = frozenset({"compile", "liger-compiled"})
#: Those whose first pass of a shape is not timed: it compiles, or makes the accumulator.
WARMED = COMPILING | {"ours-trained"}
#: What runs unless others are asked for. Compiled code is how Liger's chunked loss comes, and its best.
DEFAULT_VARIANTS = {
    "cpu": ("plain", "ours", "ours-trained", "ours-recomputing", "liger", "liger-compiled", "trl"),
    "cuda": ("plain", "ours", "ours-trained", "ours-recomputing", "compile", "liger", "trl"),
}
