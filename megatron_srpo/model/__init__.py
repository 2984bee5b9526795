"""Qwen3 as a Megatron-Core ``GPTModel``: architecture, process groups, layer spec, head, packing.

Importing any module of this package makes ``megatron.core`` usable on the machine first (see
``platform.prepare_megatron``), so that modules here may import it at their top like any other library.
"""

from megatron_srpo import platform

platform.prepare_megatron()
