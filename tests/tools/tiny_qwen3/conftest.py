"""The carried model, loaded once."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

CARRIED = Path(__file__).parents[3] / "examples" / "models" / "qwen3-tiny"


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(CARRIED)


@pytest.fixture(scope="session")
def carried_model() -> Any:
    return AutoModelForCausalLM.from_pretrained(CARRIED, dtype=torch.float32).eval()
