"""What the engines of an evaluation get of a cluster."""

import os
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import LlamaConfig

from lingu_ray.config import EvaluationConfig, RayConfig
from lingu_ray.evaluation.engines.vllm_engine import _on_device, _prepare
from lingu_ray.evaluation.replicas import Hardware


@pytest.mark.parametrize(
    ("gpus", "sharers", "evaluation", "ray", "replicas", "each"),
    [
        (None, 1, {}, {}, 1, 0),
        (4, 1, {}, {}, 4, 1),
        (4, 4, {}, {}, 1, 1),  # a sweep's four trials: an engine each, for the others hold their GPUs
        (8, 3, {}, {}, 2, 1),
        (4, 2, {"models_at_once": 2}, {}, 1, 1),
        (4, 1, {"replicas": 2}, {}, 2, 1),
        (0, 1, {}, {}, 1, 1),  # an autoscaler is to start a node
        (1, 2, {}, {"gpus_per_worker": 0.5}, 1, 0.5),  # two trials on one GPU
        (2, 1, {}, {"gpus_per_worker": 0.5}, 2, 1),
        (2, 1, {}, {"gpus_per_worker": 2}, 2, 1),
    ],
)
def test_engines_share_the_gpus(
    gpus: int | None, sharers: int, evaluation: dict[str, Any], ray: dict[str, Any], replicas: int, each: float
) -> None:
    """All evaluations that run side by side fit at once, with a GPU for each engine as far as there are that many."""
    settings = EvaluationConfig.model_validate(evaluation)
    hardware = Hardware.share(settings, RayConfig(**ray), sharers, gpus)
    assert (hardware.replicas, hardware.gpus) == (replicas, each)


GIB = 2**30
CONTEXT_BYTES = (2048 + 64) * 2 * 4 * 2 * 8 * 4  # tokens, keys and values, layers, heads, width, float32


@pytest.mark.parametrize(
    ("share", "free", "batch", "given"),
    [
        (1.0, 8, 1, {"gpu_memory_utilization": 0.45}),
        (0.5, 8, 1, {"kv_cache_memory_bytes": CONTEXT_BYTES, "gpu_memory_utilization": CONTEXT_BYTES / (16 * GIB)}),
        (0.5, 12, 2**24, {"kv_cache_memory_bytes": 4 * GIB, "gpu_memory_utilization": 0.25}),  # half of its share
        (0.5, 4, 2**24, {"kv_cache_memory_bytes": 2 * GIB, "gpu_memory_utilization": 0.125}),  # half of what is free
    ],
)
def test_vllm_measures_a_gpu_of_its_own_alone(
    monkeypatch: pytest.MonkeyPatch, share: float, free: int, batch: int, given: dict[str, float]
) -> None:
    """What the others on a shared GPU take or free meanwhile would be in its measurement: there it is told the size of
    its keys and values, and vLLM checks that they are free, and no more."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (free * GIB, 16 * GIB))
    config = LlamaConfig(
        num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=2, head_dim=8, max_position_embeddings=2048
    )
    assert _on_device(SimpleNamespace(config=config), batch, share) == given


def test_vllm_multiplies_float32_as_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before vLLM is imported Triton, which has its attention on GPUs, is told not to round factors to TF32."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    _prepare()
    assert os.environ["TRITON_F32_DEFAULT"] == "ieee"
