"""GPUs and their nodes, with the vendor's numbers. What of these can be achieved is in ``assumptions.py``."""

import difflib
from dataclasses import dataclass

from megatron_srpo.errors import ConfigError


@dataclass(frozen=True)
class Gpu:
    """One GPU in its usual node.

    Attributes:
        memory_bytes: what the driver offers.
        bandwidth: bytes per second of its memory.
        bf16_flops, fp8_flops: dense matrix products per second, without sparsity.
        nvlink: bytes per second in one direction to the other GPUs of the node.
        network: bytes per second in one direction of this GPU's share of the node's network.
        host_link: bytes per second in one direction to host memory.
        node_gpus: GPUs that NVLink joins.
        source: where the numbers were published.
    """

    name: str
    memory_bytes: float
    bandwidth: float
    bf16_flops: float
    fp8_flops: float
    nvlink: float
    network: float
    host_link: float
    node_gpus: int
    source: str

    def flops(self, dtype: str) -> float:
        """Return matrix products' dense operations per second in a type (fp32 as TF32: half of bf16)."""
        return {"fp8": self.fp8_flops, "bfloat16": self.bf16_flops, "float32": self.bf16_flops / 2}[dtype]


GPUS = {
    "h100": Gpu(
        "h100", 80e9, 3.35e12, 989e12, 1979e12, 450e9, 50e9, 64e9, 8,
        "NVIDIA H100 Tensor Core GPU datasheet (SXM5: 80 GB, 3.35 TB/s, BF16 1,979 and FP8 3,958 TFLOPS with "
        "sparsity; both ways: NVLink 900 GB/s, PCIe Gen5 128 GB/s); DGX H100 datasheet (8 x ConnectX-7 400 "
        "Gb/s)",
    ),
    "h200": Gpu(
        "h200", 141e9, 4.8e12, 989e12, 1979e12, 450e9, 50e9, 64e9, 8,
        "NVIDIA H200 Tensor Core GPU datasheet (SXM: 141 GB, 4.8 TB/s, matrix products as H100, NVLink "
        "900 and PCIe Gen5 128 GB/s both ways); DGX H200 datasheet (8 x ConnectX-7 400 Gb/s)",
    ),
    "b200": Gpu(
        "b200", 180e9, 8e12, 2250e12, 4500e12, 900e9, 50e9, 64e9, 8,
        "NVIDIA DGX B200 datasheet (8 GPUs: 1,440 GB, 64 TB/s, FP8 72 PFLOPS with sparsity, NVLink 14.4 TB/s "
        "both ways, ConnectX-7 400 Gb/s); NVIDIA Blackwell architecture brief (BF16 2.25 PFLOPS dense, "
        "PCIe Gen5)",
    ),
}  # fmt: skip


def find_gpu(name: str) -> Gpu:
    """Return a GPU by name.

    Raises:
        ConfigError: an unknown one; suggests the nearest.
    """
    if name.lower() in GPUS:
        return GPUS[name.lower()]
    near = difflib.get_close_matches(name.lower(), GPUS, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ConfigError(f"no data for GPU {name!r}; {hint}known: {', '.join(GPUS)}")
