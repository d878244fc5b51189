"""A cluster with GPUs that Ray counts and torch does not have: engines share them, and what needs CUDA is refused."""

import json
import tempfile
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


def test_a_cluster_of_gpus(warm_workers: Path, tmp_path: Path) -> None:
    """Of four engines one has a GPU, for other trials hold three: it answers all. Where torch has no CUDA, training and
    evaluation are refused before they start; where there are too few for all workers, the run says why it is on CPUs.
    An evaluation that shall leave GPUs alone sees none, unlike what Ray starts without any."""
    tiny_teacher(folder=tmp_path)
    with tempfile.TemporaryDirectory(prefix="lr-", ignore_cleanup_errors=True) as folder:
        words = ["logicalgpus", folder, str(tmp_path)]
        with Command(words, Path(__file__).parents[1], warm=True) as driver:
            found = json.loads(driver.finish(seconds=120).splitlines()[-1])
    for name in ("training", "evaluation"):
        assert found[name].startswith("a process with 1 CPU, 1 GPU on ") and "cannot compute on its GPU" in found[name]
        assert f"Torch not compiled with CUDA enabled (torch {torch.__version__})" in found[name]
        assert "ray.use_gpu=false" in found[name]
    assert found["starting"].endswith(" on CPU: 4 GPUs do not do for all (ray.num_workers, ray.gpus_per_worker)")
    assert found["visible"] == {"ray": "0,1,2,3", "engine": ""}
    assert found["answered"] == [list(range(12))] * 2 and found["running"] == 1
