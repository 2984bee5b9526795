"""Questions to skills: coder, embedder, and a cache on disk, so that nothing is computed twice."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from megatron_srpo.config.self_play import SelfPlayConfig
from megatron_srpo.errors import ConfigError
from megatron_srpo.selfplay.folders import SKILLS
from megatron_srpo.selfplay.skill.cache import CodeCache, VectorCache
from megatron_srpo.selfplay.skill.coder import EngineCoder
from megatron_srpo.selfplay.skill.embedder import open_embedder
from megatron_srpo.selfplay.skill.normalise import RuleBasedCoder
from megatron_srpo.selfplay.skill.types import Coder, Embedder, Rewrite
from megatron_srpo.selfplay.types import Skill

_log = logging.getLogger(__name__)

#: Questions rewritten and saved together: what a kill loses at most.
CODES_PER_SAVE = 256


def open_skill_measure(config: SelfPlayConfig, say: Callable[[str], None] = _log.info) -> "SkillMeasurement":
    """Return the measure that a self-play's configuration names, with its cache in the self-play's folder.

    Args:
        say: shows a line about the coder's engine.

    Raises:
        ConfigError: skills are switched off.
        ModelError: the coder's or the embedder's model is not there.
        DataError: the cache is damaged.
    """
    chosen = config.skill
    if not chosen.measured:
        raise ConfigError("skill.coder.kind = 'off': skills are not measured; set it to model or rule_based")
    folder = Path(config.output_dir) / SKILLS
    # What may be missing is looked for before the folder is made.
    embedder = open_embedder(chosen.embedder)
    rules = chosen.coder.kind == "rule_based"
    coder = RuleBasedCoder() if rules else EngineCoder(chosen.coder, folder / "coder", say)
    return SkillMeasurement(coder, embedder, folder)


class SkillMeasurement:
    """A :class:`~megatron_srpo.selfplay.types.SkillMeasure` with a cache in ``folder``.

    A vector's last bits may depend on the texts beside it in a batch. So a text is embedded once in the life
    of a folder, and batches are saved whole, in the order of the questions: a call that was killed and is
    made again forms the batches that are missing as the first would have, and gets the same bits.

    Attributes:
        counts: of questions asked, codes and vectors computed or found in the cache, and questions without
            code, since this object was made.
    """

    def __init__(self, coder: Coder, embedder: Embedder, folder: Path) -> None:
        self._coder, self._embedder = coder, embedder
        folder.mkdir(parents=True, exist_ok=True)
        self._codes = CodeCache(folder, coder.name)
        self._vectors = VectorCache(folder, embedder.name)
        self.counts: Counter[str] = Counter()

    @property
    def name(self) -> str:
        """Coder and embedder."""
        return f"{self._coder.name} + {self._embedder.name}"

    @property
    def description(self) -> str:
        """One line for logs."""
        return f"{self._coder.description}; {self._embedder.description}"

    @property
    def dimension(self) -> int:
        """Length of the vectors."""
        return self._embedder.dimension

    def measure(self, questions: Sequence[str]) -> list[Skill]:
        """Return a skill per question, in order; equal questions have equal skills.

        Raises:
            UserError: the coder's engine or the embedding model fails; what was measured stays saved.
        """
        texts = [_writable(question) for question in questions]
        rewrites = self._rewrites(texts)
        embedded = [
            text if rewrite.code is None else self._coder.embedded(rewrite.code)
            for text, rewrite in zip(texts, rewrites, strict=True)
        ]
        self._embed(embedded)
        self.counts["questions"] += len(texts)
        self.counts["unparsed"] += sum(rewrite.code is None for rewrite in rewrites)
        return [self._skill(*found) for found in zip(texts, rewrites, embedded, strict=True)]

    def close(self) -> None:
        """Free coder and embedder. Idempotent."""
        self._coder.close()
        self._embedder.close()

    def _rewrites(self, texts: Sequence[str]) -> list[Rewrite]:
        missing = [text for text in dict.fromkeys(texts) if self._codes.get(text) is None]
        self._count("codes", texts, missing)
        for batch in _cut(missing, CODES_PER_SAVE):
            self._codes.add(batch, self._coder.rewrite(batch))
        return [rewrite for text in texts if (rewrite := self._codes.get(text)) is not None]

    def _embed(self, texts: Sequence[str]) -> None:
        missing = [text for text in dict.fromkeys(texts) if self._vectors.get(text) is None]
        self._count("vectors", texts, missing)
        for batch in _cut(missing, self._embedder.chunk):
            self._vectors.add(batch, self._embedder.embed(batch))

    def _count(self, what: str, wanted: Sequence[str], missing: Sequence[str]) -> None:
        self.counts[f"{what} computed"] += len(missing)
        self.counts[f"{what} from cache"] += len(set(wanted)) - len(missing)

    def _skill(self, text: str, rewrite: Rewrite, embedded: str) -> Skill:
        vector_D = self._vectors.get(embedded)
        assert vector_D is not None
        return Skill(text if rewrite.code is None else rewrite.code, rewrite.code is not None, vector_D)


def _cut(texts: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(texts), size):
        yield texts[start : start + size]


def _writable(text: str) -> str:
    """Replace halves of surrogate pairs, which models may write and no tokenizer takes."""
    return text.encode("utf-8", "replace").decode("utf-8")
