"""What workers on other nodes get of the driver's environment."""

import pytest

from lingu_ray.runtime.cluster import worker_environment


@pytest.mark.parametrize(
    ("name", "passed"),
    [
        ("NCCL_SOCKET_IFNAME", True),
        ("TORCH_NCCL_BLOCKING_WAIT", True),
        ("PYTORCH_CUDA_ALLOC_CONF", True),
        ("VLLM_ATTENTION_BACKEND", True),
        ("HF_HOME", True),
        ("HF_HUB_OFFLINE", True),
        ("OMP_WAIT_POLICY", True),
        ("HF_TOKEN", False),  # Ray shows and logs what it hands on
        ("HF_HUB_TOKEN", False),
        ("VLLM_API_KEY", False),
        ("PYTHONPATH", False),
        ("AWS_SECRET_ACCESS_KEY", False),
    ],
)
def test_what_is_passed_on(name: str, passed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of NCCL, PyTorch, vLLM and Hugging Face; never a secret."""
    monkeypatch.setenv(name, "x")
    assert (worker_environment().get(name) == "x") is passed
