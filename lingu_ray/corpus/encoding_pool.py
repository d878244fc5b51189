"""Threads that decode and encode rows ahead of need."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from threadpoolctl import threadpool_limits


def encoding_pool(threads: int) -> ThreadPoolExecutor:
    """So many threads; in each torch computes alone, where it would else have as many helpers as there are cores."""
    return ThreadPoolExecutor(threads, thread_name_prefix="encode", initializer=_compute_alone)


def _compute_alone() -> None:
    torch.get_num_threads()  # torch sets a thread's number when it is first asked for
    threadpool_limits(1, user_api="openmp")  # of this thread, where torch.set_num_threads would be for all
