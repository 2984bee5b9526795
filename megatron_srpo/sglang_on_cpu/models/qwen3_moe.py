"""SGLang asks every module of the package for ``EntryClass``, the models that it adds."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Import SGLang's model when it is asked for: this module must import where SGLang does not."""
    if name != "EntryClass":
        raise AttributeError(name)
    from sglang.srt.models.qwen3_moe import Qwen3MoeForCausalLM

    return [Qwen3MoeForCausalLM]
