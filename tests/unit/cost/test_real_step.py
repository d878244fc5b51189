"""The tensors of real steps beside the estimate of the worker, where what differs is a large part of them."""

from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.estimate import IMAGE_TOKENS, Case, Run, run_config
from lingu_ray.cost.devices import Device
from lingu_ray.cost.estimate import estimate_of
from lingu_ray.cost.memory import FRAGMENTATION, pass_memory, worker
from lingu_ray.cost.models import read_models
from lingu_ray.cost.trace import LiveBytes
from lingu_ray.cost.workload import RowConfig

CPU = Device("cpu", 24e9, bf16=1e11, fp32=1e11, bandwidth=1e10)
BF16 = {"precision": "bf16"}


TOWER = {"vision": 1e-5, "decoder": 1e-5}
BATCH = {"rows": 1, "micro_batches": 4, "text": 24, "answer": 8}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("train", "teacher"),
    [
        pytest.param(BF16, {"look_ahead": 2}, id="ahead"),
        pytest.param(BF16, {"micro_batches_per_call": 3}, id="three a call"),
        pytest.param(BF16 | {"learning_rates": TOWER}, {"look_ahead": 2}, id="tower"),
        pytest.param(BF16 | {"lora": {"rank": 4}}, {"look_ahead": 2}, id="lora"),
        pytest.param(BF16 | {"gradient_checkpointing": True}, {"look_ahead": 2}, id="checkpointing"),
    ],
)
def test_rounded_weights(train: dict[str, Any], teacher: dict[str, Any], tmp_path: Path):
    """Of those that learn there is one copy, however many micro-batches are held, and with gradient checkpointing that
    of a layer; of frozen ones (LoRA) each micro-batch has its own. Gradients of a copy wait for the end of a pass."""
    compare(Case(256, 4, vocabulary=512, tower=256, train=train, teacher=teacher, **BATCH), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_frozen_weights_of_a_model_in_bf16(checkpointing: bool, tmp_path: Path):
    """They are held in bf16 themselves, and there is no other copy of them."""
    train = BF16 | {"lora": {"rank": 4}, "gradient_checkpointing": checkpointing}
    case = Case(256, 4, vocabulary=512, tower=256, train=train, dtype=torch.bfloat16, **BATCH)
    compare(case, tmp_path)
    assert measured(case, tmp_path) < 0.7 * measured(replace(case, dtype=torch.float32), tmp_path)


@pytest.mark.slow
def test_embeddings_that_are_the_head(tmp_path: Path):
    """Their two gradients and the sum of them are more than a short micro-batch keeps."""
    moment = compare(Case(64, 1, vocabulary=16384, **BATCH), tmp_path)
    assert moment == "peak of a step on top: last gradients"


@pytest.mark.slow
def test_a_tower_that_is_computed_again(tmp_path: Path):
    """With gradient checkpointing it keeps what its layers read, and one layer's own when the decoder is done."""
    train = {"learning_rates": TOWER, "gradient_checkpointing": True}
    case = Case(64, 1, vocabulary=64, tower=256, rows=64, micro_batches=1, text=4, answer=2, train=train)
    assert compare(case, tmp_path) == "peak of a step on top: vision tower"


def compare(case: Case, folder: Path) -> str:
    """The tensors at the peak of two steps, models and optimizer with them, are told within 5 %; what the peak is."""
    case.pair.student.save_pretrained(folder / "student")
    case.pair.teacher.save_pretrained(folder / "teacher")
    row = RowConfig(image_tokens=IMAGE_TOKENS, text_tokens=case.text, answer_tokens=case.answer)
    config = run_config(case, str(folder))
    run = estimate_of(config, row, CPU, read_models(config)).run
    items = [*takewhile(lambda item: item.what != FRAGMENTATION, worker(run, pass_memory(run)).items)]
    assert sum(item.bytes for item in items) == pytest.approx(measured(case, folder), rel=0.05)
    return items[-1].what


def measured(case: Case, folder: Path) -> int:
    """Bytes of the tensors at the peak of two steps, models and optimizer with them."""
    with LiveBytes() as live:
        trained = Run(case, str(folder))
        live.peak = live.now
        trained.step()
        trained.step()
    return live.peak
