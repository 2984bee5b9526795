"""Code to vectors: a sentence-transformers model, or n-grams where a test wants no model."""

import hashlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_srpo.config.self_play import EmbedderConfig
from megatron_srpo.errors import ModelError
from megatron_srpo.selfplay.skill.identity import folder_digest
from megatron_srpo.selfplay.skill.types import Embedder

PACKAGE = "package:"
REMEDY = "run `make install-self-play` (the extra self-play), or set skill.embedder"
#: Batches of one call that are saved together: a few hundred texts make a write worth its wait for the disk.
BATCHES_PER_CHUNK = 8


def open_embedder(config: EmbedderConfig) -> Embedder:
    """Return the embedder of a configuration; its model is loaded when it is first needed.

    Raises:
        ModelError: the model's folder or the library is not there.
    """
    return HashingEmbedder() if config.kind == "hashing" else SentenceTransformerEmbedder(config)


def model_folder(model: str) -> Path:
    """Return the folder that ``EmbedderConfig.model`` names: a path, or ``package:NAME/FOLDER``.

    The package is found, not imported: it holds files, and its code is of no use here.

    Raises:
        ModelError: there is no such folder or package.
    """
    if not model.startswith(PACKAGE):
        if not Path(model).is_dir():
            raise ModelError(
                f"skill.embedder.model = {model!r} is no folder; download the model, or {REMEDY}"
            )
        return Path(model)
    name, _, inside = model.removeprefix(PACKAGE).partition("/")
    # A dotted name would import its parent to be found.
    found = importlib.util.find_spec(name) if name.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise ModelError(f"skill.embedder.model = {model!r}: there is no package {name!r} here; {REMEDY}")
    folder = Path(next(iter(found.submodule_search_locations))) / inside
    if not folder.is_dir():
        raise ModelError(f"skill.embedder.model = {model!r}: the package has no folder {inside!r}")
    return folder


def unit_rows(vectors_TD: NDArray[np.float32], texts: Sequence[str], model: str) -> NDArray[np.float32]:
    """Return rows of unit length in float32, whatever the model gave.

    A row that has no direction (all zero, or not finite, as after an overflow in half precision) is replaced
    by one that the text alone decides and that is nearly orthogonal to all others: one text must not stop a
    run.

    Raises:
        ModelError: no row of several is usable; then the model is broken, not a text.
    """
    rows_TD = np.asarray(vectors_TD, dtype=np.float64)
    lengths_T = np.linalg.norm(rows_TD, axis=1)
    good_T = np.isfinite(lengths_T) & (lengths_T > 0)
    if len(texts) > 1 and not good_T.any():
        raise ModelError(f"{model} gives vectors that are zero or not finite for all of {len(texts)} texts")
    for place in np.flatnonzero(~good_T).tolist():
        rows_TD[place] = _stray(texts[place], rows_TD.shape[1])
    return (rows_TD / np.where(good_T, lengths_T, 1.0)[:, None]).astype(np.float32)


def _stray(text: str, dimension: int) -> NDArray[np.float64]:
    seed = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")
    row_D = np.random.Generator(np.random.PCG64(seed)).standard_normal(dimension)
    return row_D / np.linalg.norm(row_D)


class SentenceTransformerEmbedder:
    """A model of the sentence-transformers library in a local folder; nothing is downloaded.

    A vector's last bits depend on the texts beside it in a batch (padding, kernels of other sizes).

    Raises:
        ModelError: the folder or the library is not there.
    """

    def __init__(self, config: EmbedderConfig) -> None:
        self._config = config
        self._folder = model_folder(config.model)
        self._model: Any = None
        if importlib.util.find_spec("sentence_transformers") is None:
            raise ModelError(f"skill.embedder needs sentence-transformers, which is not installed; {REMEDY}")
        settings = f"{config.prompt_name}\0{config.max_tokens}"
        digest = hashlib.sha256(f"{folder_digest(self._folder)}\0{settings}".encode()).hexdigest()[:12]
        label = config.model.removeprefix(PACKAGE).removesuffix("/model").rstrip("/").rsplit("/", 1)[-1]
        self._name = f"{label}@{digest}"

    @property
    def name(self) -> str:
        """The model by its content, its prompt and where texts are cut; not the device."""
        return self._name

    @property
    def description(self) -> str:
        """The model and where it lives."""
        return f"sentence-transformers model {self._config.model} on {self._config.device}"

    @property
    def dimension(self) -> int:
        """Length of the vectors, as the model says; loads it."""
        return int(self._loaded().get_embedding_dimension())

    @property
    def chunk(self) -> int:
        """A few batches."""
        return self._config.batch_size * BATCHES_PER_CHUNK

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return a row of unit length per text."""
        model = self._loaded()
        if not texts:
            return np.zeros((0, self.dimension), np.float32)
        try:
            found = model.encode(
                list(texts),
                prompt_name=self._config.prompt_name,
                batch_size=self._config.batch_size,
                show_progress_bar=False,
                # As a tensor: NumPy has no bfloat16.
                convert_to_tensor=True,
                normalize_embeddings=False,
            )
        except RuntimeError as error:
            raise ModelError(
                f"{self.description} fails: {error}; if memory is short, lower skill.embedder.batch_size"
            ) from error
        return unit_rows(found.float().cpu().numpy(), texts, self.description)

    def close(self) -> None:
        """Drop the model."""
        self._model = None

    def _loaded(self) -> Any:
        if self._model is None:
            self._model = self._load()
        return self._model

    def _load(self) -> Any:
        from safetensors import SafetensorError
        from sentence_transformers import SentenceTransformer

        try:
            model = SentenceTransformer(
                str(self._folder),
                device=self._config.device,
                local_files_only=True,
                trust_remote_code=False,
            )
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            raise ModelError(
                f"cannot load {self.description} from {self._folder}: {error}; download it again, or {REMEDY}"
            ) from error
        self._check_prompt(model.prompts)
        own = model.max_seq_length
        if self._config.max_tokens is not None:
            model.max_seq_length = min(self._config.max_tokens, own or self._config.max_tokens)
        return model

    def _check_prompt(self, prompts: Mapping[str, str | None]) -> None:
        chosen = self._config.prompt_name
        # The library adds "query" and "document" without a text to every model; they would do nothing.
        own = sorted(name for name, text in prompts.items() if text)
        if chosen is not None and chosen not in own:
            known = ", ".join(own) or "none"
            raise ModelError(f"skill.embedder.prompt_name = {chosen!r}, but the model's prompts are: {known}")


class HashingEmbedder:
    """Counts of character n-grams, hashed into 256 signed places; equal on every machine."""

    DIMENSION = 256

    def __init__(self) -> None:
        if importlib.util.find_spec("sklearn") is None:
            raise ModelError(f"skill.embedder.kind = 'hashing' needs scikit-learn; {REMEDY}")
        from sklearn.feature_extraction.text import HashingVectorizer

        self._vectorizer = HashingVectorizer(
            n_features=self.DIMENSION, analyzer="char_wb", ngram_range=(2, 4), norm=None
        )

    @property
    def name(self) -> str:
        """The method and its version."""
        return f"hashing-{self.DIMENSION}-1"

    @property
    def description(self) -> str:
        """Says that it stands in."""
        return f"hashed n-grams ({self.DIMENSION} places) in place of an embedding model"

    @property
    def dimension(self) -> int:
        """256."""
        return self.DIMENSION

    @property
    def chunk(self) -> int:
        """Cheap to compute: as many as make a write worth its wait."""
        return 1024

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return a row of unit length per text."""
        if not texts:
            return np.zeros((0, self.DIMENSION), np.float32)
        counts_TD = self._vectorizer.transform(list(texts)).toarray()
        # A text without a single n-gram has no direction of its own; any number of them may come together.
        empty_T = ~counts_TD.any(axis=1)
        counts_TD[empty_T, 0] = 1.0
        return unit_rows(counts_TD, texts, self.description)

    def close(self) -> None:
        """Nothing was loaded."""
