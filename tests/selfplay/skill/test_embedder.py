"""Vectors of unit length from the real library and its small model, and from hashed n-grams."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_srpo.config.self_play import EmbedderConfig
from megatron_srpo.errors import ModelError
from megatron_srpo.selfplay.skill.embedder import (
    HashingEmbedder,
    SentenceTransformerEmbedder,
    model_folder,
    open_embedder,
    unit_rows,
)
from tests.selfplay.skill.needs import require_hashing, require_model

CODES = [
    "def solver(a, b):\n    return a + b",
    "def solver(price=3, count=4):\n    return price * count",
    "What is the capital of France?",
    "",
]


@pytest.fixture(scope="module")
def minilm() -> SentenceTransformerEmbedder:
    require_model()
    return SentenceTransformerEmbedder(EmbedderConfig(batch_size=2))


def cosines(rows_TD: np.ndarray) -> np.ndarray:
    return rows_TD @ rows_TD.T


def test_rows_of_the_real_model(minilm: SentenceTransformerEmbedder) -> None:
    rows_TD = minilm.embed(CODES)
    assert rows_TD.shape == (len(CODES), minilm.dimension) == (len(CODES), 384)
    assert rows_TD.dtype == np.float32
    assert np.allclose(np.linalg.norm(rows_TD, axis=1), 1, atol=1e-6)
    # Close texts are closer than others: the weights were loaded, not drawn.
    sum_, other = minilm.embed(["total sum", "sum of everything"]), minilm.embed(["greatest common divisor"])
    assert cosines(sum_)[0, 1] > 0.6 > (sum_ @ other.T).max()
    assert minilm.embed([]).shape == (0, 384)


def test_the_same_vectors_as_transformers_alone(minilm: SentenceTransformerEmbedder) -> None:
    """Mean of the last hidden states over the tokens, as the model's card says."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = model_folder(EmbedderConfig().model)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    inputs = tokenizer(CODES[:3], padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden_BTD = model(**inputs).last_hidden_state
    mask_BT1 = inputs["attention_mask"][..., None]
    mean_BD = (hidden_BTD * mask_BT1).sum(1) / mask_BT1.sum(1)
    expected_BD = torch.nn.functional.normalize(mean_BD, dim=-1).numpy()
    assert np.allclose(minilm.embed(CODES[:3]), expected_BD, atol=1e-5)


def test_settings_of_the_model_change_the_name(minilm: SentenceTransformerEmbedder) -> None:
    shorter = SentenceTransformerEmbedder(EmbedderConfig(max_tokens=4))
    elsewhere = SentenceTransformerEmbedder(EmbedderConfig(batch_size=7))
    assert shorter.name != minilm.name == elsewhere.name
    long = ["one two three four five six seven", "one two three four nine ten"]
    assert np.allclose(cosines(shorter.embed(long)), 1, atol=1e-5)
    assert cosines(minilm.embed(long))[0, 1] < 0.99


def test_other_weights_have_another_name(minilm: SentenceTransformerEmbedder, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    copy = Path(shutil.copytree(model_folder(EmbedderConfig().model), tmp_path / "model"))
    same = SentenceTransformerEmbedder(EmbedderConfig(model=str(copy)))
    assert same.name.split("@")[1] == minilm.name.split("@")[1]
    tensors = load_file(copy / "model.safetensors")
    save_file({name: tensor * 1.01 for name, tensor in tensors.items()}, copy / "model.safetensors")
    assert SentenceTransformerEmbedder(EmbedderConfig(model=str(copy))).name != same.name


def test_prompts_of_the_model(tmp_path: Path, minilm: SentenceTransformerEmbedder) -> None:
    with pytest.raises(ModelError, match=r"prompt_name = 'query', but the model's prompts are"):
        SentenceTransformerEmbedder(EmbedderConfig(prompt_name="query")).embed(["x"])
    copy = Path(shutil.copytree(model_folder(EmbedderConfig().model), tmp_path / "model"))
    settings = json.loads((copy / "config_sentence_transformers.json").read_text())
    settings["prompts"] = {"code": "A function of mathematics: "}
    (copy / "config_sentence_transformers.json").write_text(json.dumps(settings))
    prompted = SentenceTransformerEmbedder(EmbedderConfig(model=str(copy), prompt_name="code"))
    expected = minilm.embed(["A function of mathematics: " + CODES[0]])
    assert np.allclose(prompted.embed(CODES[:1]), expected, atol=1e-5)


def test_a_broken_folder_is_named(tmp_path: Path) -> None:
    require_model()
    copy = Path(shutil.copytree(model_folder(EmbedderConfig().model), tmp_path / "model"))
    (copy / "model.safetensors").write_bytes(b"\x10\0\0\0")
    with pytest.raises(ModelError, match=r"cannot load .*download it again"):
        SentenceTransformerEmbedder(EmbedderConfig(model=str(copy))).embed(["x"])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("/nowhere/model", "is no folder; download the model, or run `make install-self-play`"),
        ("package:no_such_package/model", "no package 'no_such_package' here; run `make install-self-play`"),
        ("package:not.plain/model", "no package 'not.plain'"),
        ("package:json/model", "has no folder 'model'"),
        ("package:", "no package ''"),
    ],
)
def test_what_is_missing_is_named(model: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        open_embedder(EmbedderConfig(model=model))


def test_the_library_itself_may_be_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = importlib.util.find_spec
    absent = ("sentence_transformers", "sklearn")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else real(name))
    with pytest.raises(ModelError, match=r"needs sentence-transformers.*make install-self-play"):
        open_embedder(EmbedderConfig(model=str(tmp_path)))
    with pytest.raises(ModelError, match=r"needs scikit-learn.*make install-self-play"):
        open_embedder(EmbedderConfig(kind="hashing"))


# -------------------- rows


def test_rows_without_a_direction_are_replaced_alike_and_by_text() -> None:
    rows_TD = np.eye(64, dtype=np.float32)[:4] * 3
    rows_TD[1] = np.nan
    rows_TD[2] = 0
    texts = ["a", "b", "c", "d"]
    unit_TD = unit_rows(rows_TD, texts, "the model")
    assert np.isfinite(unit_TD).all()
    assert np.allclose(np.linalg.norm(unit_TD, axis=1), 1, atol=1e-6)
    assert np.array_equal(unit_TD[0], np.eye(64)[0])
    again = unit_rows(np.full((1, 64), np.inf, np.float32), ["b"], "the model")
    assert np.array_equal(again[0], unit_TD[1])
    assert abs(float(unit_TD[1] @ unit_TD[2])) < 0.5


def test_a_model_that_gives_nothing_usable_is_refused() -> None:
    with pytest.raises(ModelError, match="zero or not finite for all of 2 texts"):
        unit_rows(np.zeros((2, 3), np.float32), ["a", "b"], "the model")


def test_half_precision_does_not_shorten_rows() -> None:
    rows_TD = np.random.default_rng(0).normal(size=(5, 1000)).astype(np.float16)
    lengths_T = np.linalg.norm(unit_rows(rows_TD, list("abcde"), "m").astype(np.float64), axis=1)
    assert np.abs(lengths_T - 1).max() < 1e-6


# -------------------- hashing

_PRINT = """
import sys
from megatron_srpo.selfplay.skill.embedder import HashingEmbedder
rows = HashingEmbedder().embed(sys.argv[1:])
print(rows.tobytes().hex())
"""


def test_hashing_is_the_same_in_every_process() -> None:
    require_hashing()
    embedder = HashingEmbedder()
    rows_TD = embedder.embed(CODES)
    assert rows_TD.shape == (4, embedder.dimension) and rows_TD.dtype == np.float32
    assert np.allclose(np.linalg.norm(rows_TD, axis=1), 1, atol=1e-6)
    done: Any = subprocess.run(
        [sys.executable, "-c", _PRINT, *CODES], capture_output=True, text=True, check=True
    )
    assert bytes.fromhex(done.stdout) == rows_TD.tobytes()


def test_hashing_tells_texts_apart() -> None:
    require_hashing()
    cosines_TT = cosines(HashingEmbedder().embed(["total sum", "total sums", "product of groups"]))
    assert cosines_TT[0, 1] > 0.7 > 0.3 > cosines_TT[0, 2]
    assert "in place of an embedding model" in HashingEmbedder().description
