"""Threads that decode and encode rows ahead of need."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

from lingu_ray.corpus.encode import Sample
from lingu_ray.waiting import waiting

Item = TypeVar("Item")


def encoding_pool(threads: int) -> ThreadPoolExecutor:
    """A pool of threads in which torch uses one thread each; by default each would start as many as there are cores."""
    return ThreadPoolExecutor(threads, thread_name_prefix="encode", initializer=_compute_alone)


def encoded_ahead(
    pool: ThreadPoolExecutor, groups: Iterable[Iterable[Item]], encode: Callable[[Item], Sample], ahead: int
) -> Iterator[list[Sample]]:
    """The samples of each group in turn, encoded by the pool at most `ahead` groups before they are needed."""
    begun: deque[list[Future[Sample]]] = deque()
    for group in groups:
        begun.append([pool.submit(encode, item) for item in group])
        if len(begun) > ahead:
            yield _encoded(begun.popleft())
    while begun:
        yield _encoded(begun.popleft())


def _encoded(coming: list[Future[Sample]]) -> list[Sample]:
    with waiting("rows to be read and encoded", "the storage of the corpus, and the node's cores"):
        return [sample.result() for sample in coming]


def _compute_alone() -> None:
    torch.get_num_threads()  # torch sets a thread's number when it is first asked for
    threadpool_limits(1, user_api="openmp")  # of this thread, where torch.set_num_threads would be for all
