"""A stand-in for Transformer Engine's CUDA kernels, so that Megatron-Core's own layers of it run on a CPU.

What is real in the tests that use it: Megatron-Core's classes, specs, checkpoints and communication, and our
code. What is not: the kernels. Names, arguments, parameters and their order follow Transformer Engine 2.10;
products in FP8 are imitated by rounding their operands. It proves nothing about Transformer Engine itself:
tests/gpu does.
"""

from transformer_engine import common, pytorch

__version__ = "2.10.0"
__all__ = ["common", "pytorch"]
