"""SRPO: sample-routed policy optimization for Qwen3 models on Megatron-Core.

Importing this package needs no GPU and makes no CUDA call.
"""

__version__ = "0.1.0"
