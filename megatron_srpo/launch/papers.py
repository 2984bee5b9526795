"""The papers' hyper-parameters, as data.

From the settings of SRPO (arXiv 2604.02288), which also ran its parents GRPO and SDPO; the same numbers stand
in docs/algorithms.md, section 9. What a paper leaves open is marked "choice". Values that happen to be a
config's default are given all the same: a recipe must not change when a default does.
"""

from dataclasses import dataclass
from pathlib import PurePath

from megatron_srpo.config.algorithm import AlgorithmConfig, DistillationConfig, PolicyLossConfig
from megatron_srpo.config.data import DataConfig, SourceConfig, TeacherPromptConfig
from megatron_srpo.config.evaluation import EvaluationConfig
from megatron_srpo.config.training import OptimizerConfig, TeacherConfig

PROMPTS_PER_STEP = 32
SAMPLES_PER_PROMPT = 8
PROMPT_TOKENS = 2048
RESPONSE_TOKENS = 8192
ROLLOUT_TEMPERATURE = 1.0
#: Question and demonstration.
TEACHER_PROMPT_TOKENS = 10240
#: Choice. The papers train for 10 hours; at the 75.8 s a step that SRPO reports on 8 GPUs, that is 475.
STEPS = 500


@dataclass(frozen=True)
class Paper:
    """What differs between the algorithms.

    Attributes:
        prompts_per_mini_batch: prompts of one optimizer step.
        source: where the algorithm was published.
    """

    algorithm: str
    learning_rate: float
    prompts_per_mini_batch: int
    source: str


PAPERS = {
    paper.algorithm: paper
    for paper in (
        Paper("srpo", 5e-6, 32, "arXiv 2604.02288"),
        Paper("sdpo", 1e-5, 32, "arXiv 2601.20802, in the settings of arXiv 2604.02288"),
        Paper("grpo", 1e-6, 8, "arXiv 2402.03300, as strengthened in arXiv 2604.02288"),
    )
}


def algorithm_config(paper: Paper) -> AlgorithmConfig:
    """Return routing and losses. What an algorithm does not use has the value of the others."""
    return AlgorithmConfig(
        name=paper.algorithm,
        success_threshold=0.5,
        policy=PolicyLossConfig(
            clip_low=0.2,
            clip_high=0.28,
            # Choice: the papers print a division; SDPO's released configuration does without.
            normalize_by_std=False,
            kl_coefficient=0.0,
            entropy_coefficient=0.0,
        ),
        distillation=DistillationConfig(
            alpha=0.5,  # Jensen-Shannon
            vocabulary="topk",
            top_k=100,
            tail=True,
            # The entropy weights are SRPO's own; SDPO has none.
            entropy_beta=1.0 if paper.algorithm == "srpo" else 0.0,
            importance_cap=2.0,
        ),
        engine_importance_cap=2.0,
        # Choice: SDPO's released code averages over sequences first.
        aggregation="token_mean",
    )


def optimizer_config(paper: Paper, offload: bool) -> OptimizerConfig:
    """Return AdamW; ``offload`` belongs to the layout."""
    return OptimizerConfig(
        learning_rate=paper.learning_rate,
        schedule="constant",
        warmup_steps=10,
        weight_decay=0.01,
        grad_clip=1.0,
        # Choice: PyTorch's own, which the papers do not change.
        beta1=0.9,
        beta2=0.999,
        epsilon=1e-8,
        offload=offload,
    )


def teacher_config(offload: bool) -> TeacherConfig:
    """Return the self-teacher; ``offload`` belongs to the layout."""
    return TeacherConfig(mode="ema", ema_rate=0.05, offload=offload)


def evaluation_config() -> EvaluationConfig:
    """Return the papers' evaluation: avg@16 every five steps."""
    return EvaluationConfig(every=5, samples_per_prompt=16, temperature=0.6, top_p=0.95)


def data_config(folder: str) -> DataConfig:
    """Return prompts from ``train.jsonl`` and ``test.jsonl`` of a folder, in the papers' form.

    That is the form of the SciKnowEval sets published with SDPO: ``prompt``, ``system`` and ``answer``, the
    letter of a choice. Other data: change ``data.train`` and ``data.eval``.
    """

    def source(file: str) -> SourceConfig:
        return SourceConfig(
            kind="jsonl",
            path=str(PurePath(folder) / file),
            name=PurePath(folder).name or None,
            task="multiple_choice",
            prompt_column="prompt",
            answer_column="answer",
            system_column="system",
        )

    return DataConfig(
        train=(source("train.jsonl"),),
        eval=(source("test.jsonl"),),
        thinking=False,
        max_prompt_tokens=PROMPT_TOKENS,
        teacher=TeacherPromptConfig(max_prompt_tokens=TEACHER_PROMPT_TOKENS),
    )
