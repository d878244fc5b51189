"""A cluster with GPUs that Ray counts and torch does not have: engines share them, and what needs CUDA is refused."""

import json
import sys
from pathlib import Path

import pytest
import torch
from commands import Command
from tiny import tiny_teacher

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.skipif(torch.cuda.is_available(), reason="torch computes on GPUs here"),
]

SCRIPT = """
import json, os, sys, time
os.environ["CUDA_VISIBLE_DEVICES"] = "0,1,2,3"
import ray
from lingu_ray.config import EvaluationConfig, RayConfig
from lingu_ray.errors import UserError
from lingu_ray.evaluation.engines.engine import ScoreRequest
from lingu_ray.evaluation.replicas import Chunk, Hardware, Replicas
from lingu_ray.runtime.capacity import worker_resources
from lingu_ray.runtime.gpus import check_gpus

ray.init(num_cpus=4, num_gpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
found, settings = {}, EvaluationConfig(engine="transformers")

def refused(name, check, *arguments):
    try:
        check(*arguments)
    except UserError as error:
        found[name] = str(error)

refused("training", check_gpus, worker_resources(RayConfig(), True))
refused("evaluation", Hardware.of, settings, RayConfig())

@ray.remote
def visible():
    return os.environ.get("CUDA_VISIBLE_DEVICES")

on_cpu = Hardware.of(settings, RayConfig(use_gpu=False))
found["visible"] = ray.get([visible.options(num_gpus=0).remote(), visible.options(**on_cpu.options()).remote()])

@ray.remote(num_cpus=0, num_gpus=3)
class OtherTrials:
    pass

others = OtherTrials.remote()
ray.get(others.__ray_ready__.remote())
requests = [ScoreRequest("The use of", " names")]
hardware = Hardware(replicas=4, cpus=0.1, gpus=1, threads=1)
with Replicas("transformers", settings, hardware) as replicas:
    for task in range(2):
        replicas.serve("teacher", sys.argv[1])
        chunks = [Chunk(begin, lambda: requests) for begin in range(12)]
        found[f"answered {task}"] = sorted(chunk.begin for chunk, _ in replicas.answers(chunks))
    found["running"] = 4 - len(replicas._starting)
print(json.dumps(found))
"""


def test_a_cluster_of_gpus(tmp_path: Path) -> None:
    """Of four engines one has a GPU, for other trials hold three: it answers all. Where torch has no CUDA, training and
    evaluation are refused before they start. An evaluation that shall leave GPUs alone sees none, unlike what Ray
    starts without any."""
    tiny_teacher(folder=tmp_path)
    with Command([sys.executable, "-c", SCRIPT, str(tmp_path)]) as driver:
        found = json.loads(driver.finish(seconds=120).splitlines()[-1])
    for name in ("training", "evaluation"):
        assert found[name].startswith("a process with 1 CPU, 1 GPU on ") and "cannot compute on its GPU" in found[name]
        assert f"Torch not compiled with CUDA enabled (torch {torch.__version__})" in found[name]
        assert "ray.use_gpu=false" in found[name]
    assert found["visible"] == ["0,1,2,3", ""]
    assert found["answered 0"] == found["answered 1"] == list(range(12)) and found["running"] == 1
