"""Qwen3 as a Megatron-Core ``GPTModel``: architecture, process groups, layer spec, head, packing."""
