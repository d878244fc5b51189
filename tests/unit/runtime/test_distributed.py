"""What workers tell each other."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from lingu_ray.runtime.training.distributed import all_max, all_sum, sum_gradients

CPU = torch.device("cpu")


def test_one_worker_tells_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group of one, which Ray Train makes of a single worker, sums nothing: each sum would copy all gradients."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        monkeypatch.setattr(dist, "all_reduce", lambda *_: pytest.fail("a sum over one worker"))
        trained, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
        (3 * trained).sum().backward()
        sum_gradients([trained, unused])
        assert trained.grad is not None and trained.grad.tolist() == [3, 3]
        assert unused.grad is not None and unused.grad.tolist() == [0, 0, 0]
        assert all_sum([1.5, 2], CPU) == [1.5, 2] and all_max(7, CPU) == 7
    finally:
        dist.destroy_process_group()
