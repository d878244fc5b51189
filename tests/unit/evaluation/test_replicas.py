"""What the engines of an evaluation get of a cluster."""

import os
from typing import Any

import pytest

from lingu_ray.config import EvaluationConfig, RayConfig
from lingu_ray.evaluation.engines.vllm_engine import _prepare
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


def test_vllm_multiplies_float32_as_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before vLLM is imported Triton, which has its attention on GPUs, is told not to round factors to TF32."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    _prepare()
    assert os.environ["TRITON_F32_DEFAULT"] == "ieee"
