"""What workers tell each other."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lingu_ray.runtime.training import distributed
from lingu_ray.runtime.training.distributed import all_max, all_sum, sum_gradients, zero_gradients

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


def test_a_large_gradient_is_summed_where_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ones travel together in a copy; one that fills a bucket is not copied, unless its memory has gaps.

    The sum over two workers with equal gradients is twice each.
    """
    summed: list[Tensor] = []
    monkeypatch.setattr(distributed, "is_alone", lambda: False)
    monkeypatch.setattr(distributed, "_BUCKET_ELEMENTS", 8)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: summed.append(tensor.mul_(2)))
    large, *small, turned = [nn.Parameter(torch.zeros(n)) for n in ((4, 4), (3,), (5,), (4, 5))]
    for parameter in (large, *small):
        parameter.grad = torch.rand_like(parameter)
    turned.grad = torch.rand(5, 4).T
    before = {one: one.grad.clone() for one in (large, *small, turned) if one.grad is not None}
    sum_gradients(before)
    assert all(torch.equal(one.grad, 2 * gradient) for one, gradient in before.items() if one.grad is not None)
    assert [tensor.numel() for tensor in summed] == [16, 8, 20]
    assert [any(tensor is one.grad for one in before) for tensor in summed] == [True, False, False]


def test_gradients_are_zeroed_by_one_call() -> None:
    """They stay where they are; a parameter without one gets none."""
    parameters = [nn.Parameter(torch.ones(size)) for size in (2, 3, 4)]
    for parameter in parameters[:2]:
        parameter.grad = torch.ones_like(parameter)
    before = [parameter.grad for parameter in parameters]
    with Calls() as calls:
        zero_gradients(parameters)
    assert calls.names == ["_foreach_zero_"]
    assert [parameter.grad for parameter in parameters] == before
    assert [None if gradient is None else gradient.tolist() for gradient in before] == [[0, 0], [0, 0, 0], None]


class Calls(TorchDispatchMode):
    """What is asked of the device inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func._schema.name.removeprefix("aten::"))
        return func(*args, **(kwargs or {}))
