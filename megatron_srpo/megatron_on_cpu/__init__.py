"""What unmodified Megatron-Core needs on a machine without CUDA.

No file of Megatron-Core is edited: its calls into ``torch.cuda`` are answered with CPU meanings. These are
process-wide changes to ``torch``; they are made only in trainer processes and never where CUDA exists.
Measured against megatron-core 0.16.1 and 0.19.2 (``docs/decisions.md``).
"""

from megatron_srpo.megatron_on_cpu.install import install

__all__ = ["install"]
