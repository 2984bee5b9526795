"""Two training steps on whatever device this process has; prints what they gave as JSON.

python -m tests.gpu.one_step MODEL_FOLDER ALGORITHM
"""

import json
import sys

from megatron_srpo import platform
from megatron_srpo.config.algorithm import AlgorithmConfig
from tests.training.harness import Layout, steps_in_layout


def main() -> None:
    """Train on one rank; the process group is made by the platform module, as in a real run."""
    folder, name = sys.argv[1:]
    platform.init_distributed(timeout_s=120)
    found = steps_in_layout(0, 1, folder, Layout(), AlgorithmConfig(name=name), {}, steps=2)
    weights = {key: float(tensor.double().norm()) for key, tensor in found["weights"].items()}
    device = platform.device()
    print(json.dumps({**found, "weights": weights, "device": device.type, "backend": platform.backend()}))


if __name__ == "__main__":
    main()
