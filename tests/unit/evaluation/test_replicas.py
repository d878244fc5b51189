"""What the engines of an evaluation get of a cluster."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.exceptions import ActorDiedError, NodeDiedError, OutOfMemoryError, RayError
from tiny import picture, tiny_student, tiny_teacher
from transformers import LlamaConfig

from lingu_ray.config import EvaluationConfig, RayConfig
from lingu_ray.errors import UserError
from lingu_ray.evaluation import replicas
from lingu_ray.evaluation.engines.engine import GenerateRequest
from lingu_ray.evaluation.engines.vllm_engine import _on_device, _prepare
from lingu_ray.evaluation.replicas import Chunk, Hardware, Replicas, _EngineActor


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


def test_convolutions_are_not_rounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine in float32 embeds patches in float32 on GPUs, too, where PyTorch's default is TF32."""
    tiny_student(tiny_teacher(), folder=tmp_path)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    engine = _EngineActor("transformers", EvaluationConfig(), Hardware(1, 1, 0, torch.get_num_threads()))
    assert len(engine.answer(str(tmp_path), [GenerateRequest("What is it?", (picture(0),), 2)])) == 1
    assert not torch.backends.cudnn.allow_tf32


FULL = OutOfMemoryError("1 worker(s) were killed due to the node running low on memory: 22GB used / 23GB limit (0.95)")


@pytest.mark.parametrize("error", [FULL, ActorDiedError(), NodeDiedError("gone")])
@pytest.mark.parametrize("deaths", [1, 2])
def test_an_engine_that_was_lost_is_replaced_once(
    error: RayError, deaths: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever Ray calls it: the new one is asked again; a second loss at the same items is the user's to mend.

    Ray ends a process of a full node by its own monitor, which no test can wait for, so its answers are made up.
    """
    left = [error] * deaths

    def answer(reference: object) -> list[str]:
        if left:
            raise left.pop()
        return ["yes"]

    def start(self: Replicas, replica: int) -> object:
        self._starting[object()] = replica
        return SimpleNamespace(answer=SimpleNamespace(remote=lambda *_: object()))

    monkeypatch.setattr(replicas.ray, "wait", lambda refs, num_returns: (refs[:1], refs[1:]))
    monkeypatch.setattr(replicas.ray, "get", answer)
    monkeypatch.setattr(Replicas, "_start", start)
    one = Replicas("transformers", EvaluationConfig(), Hardware(1, 1, 0, 1))
    one.serve("adapted", Path("vlm"))
    chunk = Chunk(0, lambda: [])
    if deaths == 1:
        assert list(one.answers([chunk])) == [(chunk, ["yes"])]
    else:
        with pytest.raises(UserError, match="tokens_per_batch") as told:
            list(one.answers([chunk]))
        assert ("22GB used / 23GB limit" in str(told.value)) == (error is FULL)
    assert caplog.text.count("a new one is started") == 1
    assert ("its node ran out of memory" in caplog.text) == (error is FULL)
