"""What processes get of the driver's environment, and what it has unless told otherwise."""

import json
import os
import subprocess
import sys

import pytest
from ray.runtime_env.runtime_env import _merge_runtime_env

from lingu_ray.runtime.cluster.connect import KERNEL_CACHES, worker_environment


@pytest.mark.parametrize(
    ("name", "passed"),
    [
        ("NCCL_SOCKET_IFNAME", True),
        ("TORCH_NCCL_BLOCKING_WAIT", True),
        ("GLOO_SOCKET_IFNAME", True),
        ("PYTORCH_CUDA_ALLOC_CONF", True),
        ("VLLM_ATTENTION_BACKEND", True),
        ("HF_HOME", True),
        ("HF_HUB_OFFLINE", True),
        ("OMP_WAIT_POLICY", True),
        ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", True),
        ("LRU_CACHE_CAPACITY", True),
        ("TORCH_CUDNN_SDPA_DEPRIORITIZED", True),
        ("HF_TOKEN", False),  # Ray shows and logs what it hands on
        ("HF_HUB_TOKEN", False),
        ("VLLM_API_KEY", False),
        ("PYTHONPATH", False),
        ("AWS_SECRET_ACCESS_KEY", False),
    ],
)
def test_what_is_passed_on(name: str, passed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of NCCL, gloo, PyTorch, vLLM and Hugging Face; never a secret."""
    monkeypatch.setenv(name, "x")
    assert (worker_environment().get(name) == "x") is passed


def test_what_a_job_has_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a Ray job whose runtime environment has variables that are passed on, too, Ray takes what is named here."""
    of_job = {"env_vars": {"NCCL_DEBUG": "INFO", "RAY_ADDRESS": "auto"}, "working_dir": "gcs://x.zip"}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": of_job, "metadata": {}}))
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    monkeypatch.setenv("HF_HOME", "/models")
    variables = worker_environment(RAY_ADDRESS="1.2.3.4:6379")
    merged = _merge_runtime_env(of_job, {"env_vars": variables})  # as `ray.init` does; None where Ray refuses
    assert merged is not None and merged["env_vars"] == of_job["env_vars"] | variables
    assert variables["HF_HOME"] == "/models"


@pytest.mark.parametrize("given", [None, "0"])
def test_attention_on_a_gpu_is_not_planned_for_each_shape(given: str | None) -> None:
    """A process of a run leaves cuDNN's attention to the last; what the user sets holds."""
    name = "TORCH_CUDNN_SDPA_DEPRIORITIZED"
    environment = {key: value for key, value in os.environ.items() if key != name} | ({name: given} if given else {})
    shown = [sys.executable, "-c", f"import os, lingu_ray.runtime; print(os.environ['{name}'])"]
    done = subprocess.run(shown, env=environment, capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.strip() == (given or "1")


PRODUCTS = """
import psutil, torch
import lingu_ray.runtime.cluster.connect

def multiply(rows):
    torch.ones(rows, 576, dtype=torch.bfloat16) @ weight

weight = torch.ones(576, 576, dtype=torch.bfloat16)
for rows in range(1, 200):
    multiply(rows)
before = psutil.Process().memory_info().rss
for rows in range(200, 500):
    multiply(rows)
print((psutil.Process().memory_info().rss - before) / 2**20)
"""


@pytest.mark.slow
def test_products_of_ever_new_shapes_take_no_memory() -> None:
    """After the first two hundred shapes three hundred others add little: oneDNN keeps 1 MiB of each on some CPUs.

    On others it has no bf16, and PyTorch multiplies itself.
    """
    environment = {name: value for name, value in os.environ.items() if name not in KERNEL_CACHES}
    done = subprocess.run(
        [sys.executable, "-c", PRODUCTS], env=environment, capture_output=True, text=True, check=True, timeout=300
    )
    assert float(done.stdout) < 150
