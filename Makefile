# `make help` lists the targets. Nothing is needed beforehand but make and Python 3.11 or 3.12 with venv.

# The first of these that is Python 3.11 or 3.12; or say which: make PYTHON=/path/to/python3.12 install
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))
ifeq ($(origin PYTHON),undefined)
PYTHON := $(firstword $(foreach p,python3 python3.12 python3.11,$(shell $(p) -c '$(SUPPORTED)' 2>/dev/null && echo $(p))))
endif
VENV ?= .venv
# cpu or gpu: which build of torch, and which constraints file.
ifeq ($(origin ACCELERATOR),undefined)
ACCELERATOR := $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
endif
# Where the CPU build of torch comes from when the configured package index has none. Empty: ask nowhere else.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH_VERSION := 2.13.0
CONFIG ?= examples/quickstart.yaml
# local: samples in the trainer's processes. sglang: a real SGLang server beside them. Empty: as CONFIG says.
ENGINE ?=
RUN ?= runs/quickstart$(addprefix -,$(ENGINE))
PYTEST_ARGS ?=
# Processes that run tests side by side; each starts up to four ranks of its own.
WORKERS ?= 2
# What tools/virtual_slurm needs, as Debian 12 calls it.
SLURM_PACKAGES ?= slurmctld slurmd slurm-client slurmdbd slurm-wlm-mysql-plugin mariadb-server munge iproute2 libslurm-dev gcc

# A browser and a font with signs of many languages, as Debian 12 calls them.
CHROMIUM_PACKAGES ?= chromium fonts-dejavu-core

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PYTHON_TAG = $(shell $(PYTHON) -c 'import sys; print("py%d%d" % sys.version_info[:2])')
PINS = $(wildcard constraints/$(ACCELERATOR)-$(PYTHON_TAG).txt)
PINNED = $(if $(PINS),--constraint $(PINS))
INPUTS := setup.py $(wildcard constraints/*.txt)

.PHONY: quickstart test test-all lint install install-sglang install-kernels install-launch install-self-play install-bench install-resiliency install-slurm install-chromium screenshots freeze clean help
.DEFAULT_GOAL := help

quickstart: $(if $(filter sglang,$(ENGINE)),install-sglang,install) ## install, then train with the main example and write its report
	$(BIN)/megatron-srpo train --config $(CONFIG) $(if $(wildcard $(RUN)/config.yaml),--resume) \
	    $(addprefix rollout.engine=,$(ENGINE)) output_dir=$(RUN)
	@echo "Report: $(RUN)/report.html"

test: $(VENV)/.dev $(VENV)/.launch $(VENV)/.self-play $(VENV)/.sglang $(VENV)/.kernels $(VENV)/.resiliency ## install, then run the tests but the slow ones; what did not run is counted by reason
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile $(PYTEST_ARGS)

test-all: override PYTEST_ARGS += --run-slow
test-all: test ## every test, the slow ones too

lint: $(VENV)/.dev ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(VENV)/.base ## virtual environment with the package (editable)
install-launch: $(VENV)/.launch ## nemo-run, for launching on other machines
install-self-play: $(VENV)/.self-play ## clusters, BLEU and embeddings for self-play, with a small embedding model
install-bench: $(VENV)/.bench ## TRL and py-spy, for tools/benchmarks
install-resiliency: $(VENV)/.resiliency ## nvidia-resiliency-ext in a folder of its own, for the tests of hanging ranks
install-sglang: $(VENV)/.sglang ## the SGLang server and its router, as they run without a GPU
install-kernels: $(VENV)/.kernels ## Triton in a folder of its own, for the tests that interpret and compile its kernels

$(VENV)/.python:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or 3.12 found; run: make PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -c '$(SUPPORTED)' || { echo "$(PYTHON) is not Python 3.11 or 3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# torch first and by itself: on Linux, the default index serves a CUDA build of several GB. So ask the configured
# index for a CPU build, then TORCH_INDEX (two short tries; its copies of torch's dependencies may be old, so without
# them), and only then take what the index has.
$(VENV)/.torch: $(VENV)/.python $(INPUTS)
ifeq ($(ACCELERATOR),gpu)
	$(PIP) install $(PINNED) 'torch>=2.10,<2.15'
else
	@if $(PIP) install -q --dry-run --no-deps 'torch==$(TORCH_VERSION)+cpu' >/dev/null 2>&1; then \
	    set -x; $(PIP) install $(PINNED) 'torch==$(TORCH_VERSION)+cpu'; \
	elif test -n "$(TORCH_INDEX)" && (set -x; \
	    $(PIP) install --no-deps --timeout 15 --retries 1 --index-url '$(TORCH_INDEX)' 'torch==$(TORCH_VERSION)'); then :; \
	else \
	    echo "No CPU build of torch was found; taking the default build (several GB on Linux)."; \
	    set -x; $(PIP) install $(PINNED) 'torch==$(TORCH_VERSION)'; \
	fi
endif
	@touch $@

$(VENV)/.base: $(VENV)/.torch
	@echo "Versions: $(or $(PINS),no constraints file for $(ACCELERATOR)-$(PYTHON_TAG): the newest that setup.py allows)"
	$(PIP) install $(PINNED) --editable '.[$(ACCELERATOR)]'
	@touch $@

$(VENV)/.dev $(VENV)/.launch $(VENV)/.self-play $(VENV)/.bench: $(VENV)/.%: $(VENV)/.base
	$(PIP) install $(PINNED) --editable '.[$(ACCELERATOR),$*]'
	@touch $@

# SGLang declares CUDA packages and one exact torch that a machine without a GPU cannot use; hence --no-deps.
$(VENV)/.sglang: $(VENV)/.base
	$(PIP) install $(PINNED) --no-deps sglang==0.5.23 sglang-router==0.3.2 compressed-tensors==0.18.0 xgrammar==0.2.7
	$(PIP) install $(PINNED) --editable '.[$(ACCELERATOR),sglang]'
	@touch $@

# Not in the environment itself: Megatron-Core and SGLang take an installed Triton for a sign of CUDA. Its interpreter
# fails with NumPy 2.4 and later (a scalar made of an array of one entry), so it gets a NumPy of its own.
$(VENV)/.kernels: $(VENV)/.python
	$(PIP) install --no-deps --upgrade --target $(VENV)/triton triton==3.6.0 numpy==2.3.5
	@touch $@

# In a folder of its own, too: where it is installed, each import of torch warns of its pynvml. What this release
# declares beside torch is there already or is loaded on GPUs only.
$(VENV)/.resiliency: $(VENV)/.base
	$(PIP) install --no-deps --upgrade --target $(VENV)/resiliency nvidia-resiliency-ext==0.4.1 defusedxml==0.7.1 \
	    nvidia-ml-py==13.580.82 pynvml==13.0.1
	@touch $@

install-slurm: ## Slurm itself from Debian packages (root), for the tests on a virtual cluster
	apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $(SLURM_PACKAGES)

install-chromium: ## Chromium from Debian packages (root), for the tests and pictures of the report pages
	apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $(CHROMIUM_PACKAGES)

screenshots: $(VENV)/.dev ## draw docs/images/report-*.png anew from finished runs: make screenshots RUNS="runs/a runs/b"
	$(BIN)/python -m tools.report_screenshots $(RUNS)

freeze: ## print the installed versions, for a constraints file
	@$(PIP) freeze --exclude-editable | sed 's/+cpu$$//'

clean: ## remove the virtual environment, build products and caches (runs/ stays)
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo "  Variables: PYTHON=$(PYTHON) ACCELERATOR=$(ACCELERATOR) VENV=$(VENV) ENGINE=$(ENGINE) TORCH_INDEX=$(TORCH_INDEX) PYTEST_ARGS="
