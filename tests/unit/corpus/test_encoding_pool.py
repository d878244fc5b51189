"""Threads that encode: torch computes alone in each, and elsewhere with as many threads as before."""

import torch

from lingu_ray.config import RayConfig
from lingu_ray.corpus.encoding_pool import encoding_pool
from lingu_ray.runtime.cluster import connect


def test_torch_computes_alone_in_each_thread_and_as_before_elsewhere():
    """The pool's threads have one each, after work as before it; the caller and its later threads keep their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with encoding_pool(3) as pool:
            for _ in range(2):
                assert set(pool.map(lambda _: torch.get_num_threads(), range(9))) == {1}
                list(pool.map(lambda _: torch.ones(300, 300).square().sum(), range(9)))
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_beside_a_gpu_rows_are_encoded_by_all_cores(monkeypatch):
    """As many threads as reserved CPUs, at least 2; beside a GPU a worker's part of the cores, if that is more."""
    monkeypatch.setattr(connect, "cores", lambda: 16)
    one, many = RayConfig(), RayConfig(cpus_per_worker=6)
    assert [connect.encoding_threads(ray, on_gpu=False) for ray in (one, many)] == [2, 6]
    assert [connect.encoding_threads(ray, on_gpu=True) for ray in (one, many)] == [16, 16]
    assert [connect.encoding_threads(ray, on_gpu=True, sharers=4) for ray in (one, many)] == [4, 6]
