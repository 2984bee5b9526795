# Image for GPU nodes: trainer, SGLang servers and launcher in one. How to build, import and check it, and what has
# not been verified: docs/container.md. NOT BUILT YET: the machine that this was written on has no Docker daemon and
# no GPU. What was checked, by `python tools/check_pins.py gpu-py312`: that all pins meet one another's declared
# requirements, have wheels for this Python and glibc, and fit the base image.
#
# Where each constraint comes from (tools/check_pins.py gpu-py312 --why NAME prints them from the metadata):
#   torch 2.14.1          sglang 0.5.23 and sglang-kernel 0.4.10 declare exactly this one
#   CUDA 13.0             torch 2.14.1 declares cuda-toolkit 13.0.3; blockwise FP8 needs 12.9 (docs/precision.md)
#   base image 13.0.3     apex refuses to compile with another CUDA than torch's; `devel`, since apex and Transformer
#                         Engine are compiled here, and FlashInfer, TileLang and others compile kernels while they
#                         run; `cudnn` for Transformer Engine's headers. Not NGC's PyTorch image: its torch is a build
#                         of its own, for which SGLang's binary kernels were not made
#   Ubuntu 24.04          its Python is 3.12 (megatron-core 0.19 needs 3.12); nvidia-resiliency-ext's wheel needs
#                         its glibc, 2.39
#   everything else       constraints/gpu-py312.txt, gpu-py312-source.txt and pins.toml
#
# The digest is the tag's list of images in Docker Hub, read from public records of September 2026. Drop it to take
# whatever the tag is now.
FROM nvidia/cuda:13.0.3-cudnn-devel-ubuntu24.04@sha256:0230b7f243483cb15969fa3cc724a9459599604427052fc2a0d4291c7c0647dd

# Compute capabilities that apex is compiled for: A100, H100, B200 (and B300, which runs B200's code).
ARG ARCHITECTURES="8.0;9.0;10.0"
# Compilers side by side; each takes several GB.
ARG BUILD_JOBS=8
# Another package index than pip's own, if the build is given one.
ARG PIP_INDEX_URL

# The Python and what compiles for it; libnuma for SGLang; libibverbs and librdmacm for NCCL over InfiniBand.
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        build-essential ca-certificates git ibverbs-providers libibverbs1 libnuma1 librdmacm1 \
        python3.12 python3.12-dev python3.12-venv \
 && rm -rf /var/lib/apt/lists/*

ENV VIRTUAL_ENV=/usr/local/venv \
    CUDA_HOME=/usr/local/cuda \
    PIP_CACHE_DIR=/var/cache/pip \
    PIP_DISABLE_PIP_VERSION_CHECK=1
ENV PATH=$VIRTUAL_ENV/bin:$PATH
RUN python3.12 -m venv $VIRTUAL_ENV

# The file names everything that is needed, so pip has nothing to choose: --no-deps, and `pip check` at the end says
# whether that was right. Without isolation, the three packages that have no wheel are built with the pinned tools.
COPY constraints/ /usr/local/src/constraints/
RUN --mount=type=cache,target=/var/cache/pip \
    pip install --constraint /usr/local/src/constraints/gpu-py312.txt setuptools wheel \
 && pip install --no-deps --no-build-isolation --requirement /usr/local/src/constraints/gpu-py312.txt

# Transformer Engine's PyTorch part and apex, against the torch above and the base image's nvcc. Without
# NVTE_PYTORCH_FORCE_BUILD, the former would download a binary from elsewhere; its NCCL expert parallelism, which
# this project does not use, would need a newer NCCL than the base image's.
RUN --mount=type=cache,target=/var/cache/pip \
    MAX_JOBS=$BUILD_JOBS TORCH_CUDA_ARCH_LIST=$ARCHITECTURES \
    NVTE_FRAMEWORK=pytorch NVTE_PYTORCH_FORCE_BUILD=TRUE NVTE_WITH_NCCL_EP=0 \
    APEX_CPP_EXT=1 APEX_CUDA_EXT=1 \
    pip install --no-deps --no-build-isolation --requirement /usr/local/src/constraints/gpu-py312-source.txt

COPY . /usr/local/src/megatron-srpo
WORKDIR /usr/local/src/megatron-srpo
RUN --mount=type=cache,target=/var/cache/pip pip install --no-deps --no-build-isolation .

# Self-check, with the little that can be seen without a GPU: no requirement is unmet, torch is the CUDA build, the
# compiled parts load, and the doctor finds nothing that would stop a run (it warns of Transformer Engine without
# CUDA). On a node with GPUs, run `megatron-srpo doctor` again.
RUN pip check \
 && python -c "import torch; assert torch.version.cuda == '13.0', torch.version.cuda; import amp_C, fused_weight_gradient_mlp_cuda" \
 && python -c "import nemo_run, sglang_router" \
 && megatron-srpo doctor
