"""One small model folder for all engine tests."""

from pathlib import Path

import pytest

from tests.rollout.models import write_model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3 with untied embeddings."""
    return write_model(tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="session")
def tied_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3 whose output head is its embedding."""
    return write_model(tmp_path_factory.mktemp("tied"), tie_word_embeddings=True)
