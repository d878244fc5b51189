"""The counts that a step's loss is divided by are those of all workers."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from tinyrun import config
from torch.testing._internal.distributed import multi_threaded_pg

from lingu_ray.corpus.encode import Encoder, Sample
from lingu_ray.corpus.row import Row
from lingu_ray.distill.student import Student
from lingu_ray.runtime.models.load import load_processor, load_student, load_teacher
from lingu_ray.runtime.training.step import MicroBatches, StepWeights

ROWS = (  # of each worker: source and answer
    [("text", "A tale that is told at length."), ("pictures", "No.")],
    [("pictures", "It is odd, and so on."), ("text", "Yes."), ("text", "Quite so.")],
)


@pytest.fixture
def workers() -> Iterator[None]:
    """Threads as workers: PyTorch's process group for tests of its own."""
    multi_threaded_pg._install_threaded_pg()
    torch._C._distributed_c10d._set_thread_isolation_mode(True)
    yield
    torch._C._distributed_c10d._set_thread_isolation_mode(False)
    multi_threaded_pg._uninstall_threaded_pg()


def test_counts_are_those_of_all_workers(data, workers):
    """Two workers with other rows divide by the same counts, of CE and of KD: the sums over both."""
    settings = config(data, data)
    encoder = Encoder(load_processor(settings.student), 160)
    teacher = load_teacher(settings.teacher, torch.float32, torch.device("cpu"))
    micro_batches = MicroBatches(settings, Student(load_student(settings.student)), teacher, torch.device("cpu"))
    samples = [[_sample(encoder, *row) for row in rows] for rows in ROWS]
    found: dict[int, StepWeights] = {}
    store = dist.HashStore()

    def work(rank: int) -> None:
        dist.init_process_group("threaded", rank=rank, world_size=len(ROWS), store=store)
        batches = micro_batches.make(samples[rank], encoder.pad_id)
        plans = [micro_batches.plan(batch) for batch in batches]
        found[rank] = micro_batches.weights(0.0, batches, plans)
        dist.destroy_process_group()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(ROWS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    tokens = {"text": 0, "pictures": 0}
    for sample in (sample for of_worker in samples for sample in of_worker):
        tokens[sample.source] += int(sample.supervised_T.sum())
    assert found[0] == found[1]
    assert found[0].ce_tokens == tokens["text"] + tokens["pictures"]
    assert found[0].kd_tokens == tokens["text"]
    assert found[0].kd_normalizer == found[0].ce_tokens  # no answer is sampled


def _sample(encoder: Encoder, source: str, answer: str) -> Sample:
    messages = [{"role": "user", "content": "Say"}, {"role": "assistant", "content": answer}]
    return encoder.encode(Row(source, 0, messages, [], False))
