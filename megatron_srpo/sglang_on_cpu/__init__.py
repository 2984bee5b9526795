"""What an unmodified SGLang needs on a machine without CUDA.

No file of SGLang is edited. Packages that exist for CUDA only are answered by stand-ins at import
(:mod:`kernels`, :mod:`torchvision`, :mod:`triton`), and two things are added through SGLang's own plugin
interface (:mod:`plugin`): seeds per request, which SGLang offers on GPUs only, and attention over a whole
batch at once. Nothing here is imported where CUDA exists. Measured against sglang 0.5.23.
"""

from megatron_srpo.sglang_on_cpu.install import install, is_installed

__all__ = ["install", "is_installed"]
