"""Roles shown for a row are those that it has in a training batch: donated, query, CE, KD, with the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_processor
from tinyrun import settings

from lingu_ray.config import Config
from lingu_ray.corpus.batch import MicroBatch
from lingu_ray.corpus.encode import Encoder, Sample
from lingu_ray.corpus.row import Row
from lingu_ray.distill.donation import Donation, predicting
from lingu_ray.distill.student import Student
from lingu_ray.distill.teacher import Teacher
from lingu_ray.preview.roles import Judge, Roles
from lingu_ray.runtime.models.load import load_student, load_teacher, teacher_vocabulary
from lingu_ray.runtime.training.step import MicroBatches

MAX_LENGTH = 90
CASES = [
    ("selective", "shared_kv", "full", False),
    ("selective", "shared_kv", "visual", True),
    ("all", "shared_kv", "full", True),
    ("all", "shared_kv", "visual", False),
    ("all", "prompt_text", "full", False),
    ("language_only", "prompt_text", "visual", True),
    ("none", "shared_kv", "full", False),
]


@pytest.fixture(scope="module")
def pair(data: Path) -> tuple[Student, Teacher]:
    """The tiny pair, loaded as a worker loads it."""
    config = Config.model_validate(settings(data, data))
    teacher = load_teacher(config.teacher, torch.float32, torch.device("cpu"))
    return Student(load_student(config.student)), teacher


def samples(data: Path) -> list[Sample]:
    """Short and long texts, one of them cut in its answer; one and two pictures; three turns, cut in the last."""
    say = lambda role, content: {"role": role, "content": content}  # noqa: E731
    ask = lambda *turns: [say("assistant" if i % 2 else "user", turn) for i, turn in enumerate(turns)]  # noqa: E731
    images = [(data / f"{i}.png").read_bytes() for i in range(3)]
    rows = [
        Row("text", 0, ask("Tell me.", "A longer story."), [], True),
        Row("text", 1, ask("And you?", "No. " * 60), [], True),
        Row("pictures", 2, ask("<image>Even?", "It is odd."), images[:1], False),
        Row("text", 3, ask("<image> and <image>?", "Noise.", "Sure?", "Quite.", "Why?", "So. " * 50), images[1:], True),
        Row("pictures", 4, ask("Odd?", "Yes.", "<image>And this?", "It is even."), images[:1], False),
    ]
    encoder = Encoder(tiny_processor(), MAX_LENGTH)
    encoded = [encoder.encode(row) for row in rows]
    assert [len(sample) == MAX_LENGTH for sample in encoded] == [False, True, False, True, False]
    return encoded


def roles_in(batch: MicroBatch, plan: Donation | None) -> dict[int, Roles]:
    """The roles of every sample of a training batch, by the sample's position in the corpus."""
    masks = {name: torch.zeros_like(batch.supervised_BT) for name in ("ce", "kd", "donated", "query")}
    row_N, column_N = predicting(batch.supervised_BT, batch.sample_BT).nonzero(as_tuple=True)
    masks["ce"][row_N, column_N + 1] = True
    if plan is not None:
        masks["kd"][row_N[plan.kd_mask_N], column_N[plan.kd_mask_N] + 1] = True
        masks["donated"][plan.donated_row_C, plan.donated_column_C] = True
        masks["query"][plan.query_row_Q, plan.query_column_Q] = True
    return {
        position: Roles(*(mask_BT[batch.sample_BT == sample] for mask_BT in masks.values()))
        for sample, position in enumerate(batch.positions)
    }


@pytest.mark.parametrize(("policy", "context", "scope", "packing"), CASES)
def test_roles_are_those_of_the_training_batch(
    data: Path, pair: tuple[Student, Teacher], policy: str, context: str, scope: str, packing: bool
) -> None:
    """Of padded and packed rows, cut ones, several turns and images: each token's role, all weights, and the counts."""
    tree: dict[str, Any] = settings(
        data,
        data,
        distill={"policy": policy, "ce_on_distilled": 0.5},
        teacher={"path": str(data / "teacher"), "context": context, "scope": scope},
        train={"packing": packing},
    )
    tree["corpus"]["sources"][0] |= {"ce_weight": 3.0, "kd_weight": 0.1}
    config = Config.model_validate(tree)
    micro_batches = MicroBatches(config, pair[0], None if policy == "none" else pair[1], torch.device("cpu"))
    judges = {s.name: Judge(config, s, teacher_vocabulary(config.teacher)) for s in config.corpus.sources}
    left_out = [row for row in samples(data) if not judges[row.source].trained]
    assert bool(left_out) == (policy == "language_only")
    assert not any(mask_T.any() for row in left_out for mask_T in vars(judges[row.source].roles(row)).values())
    rows = [row for row in samples(data) if judges[row.source].trained]
    batches = micro_batches.make(rows, pad_id=2)
    assert any(int(batch.sample_BT.max()) > 0 for batch in batches)
    plans = [micro_batches.plan(batch) for batch in batches]
    trained: dict[int, Roles] = {}
    for batch, plan in zip(batches, plans, strict=True):
        trained |= roles_in(batch, plan)

    shown = {row.position: judges[row.source].roles(row) for row in rows}
    for position, roles in shown.items():
        for name, mask_T in vars(roles).items():
            assert torch.equal(mask_T, getattr(trained[position], name)), (position, name)
    for name, judge in judges.items():
        assert judge.ce_weight == micro_batches.ce_weights[name] and judge.kd_weight == micro_batches.kd_weights[name]
    weights = micro_batches.weights(0.0, batches, plans)
    assert weights.ce_tokens == sum(int(roles.ce_T.sum()) for roles in shown.values()) > 0
    assert weights.kd_tokens == sum(int(roles.kd_T.sum()) for roles in shown.values())
    assert bool(weights.kd_tokens) == (policy != "none")
