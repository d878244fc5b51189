"""Donation plans against a second, slow writing of the rule: one sample and one position at a time, in plain lists."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from random import Random
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import VOCABULARY, tiny_teacher

from lingu_ray.corpus.batch import collate
from lingu_ray.corpus.encode import Sample
from lingu_ray.distill.continuation import TeacherRequest, continue_from_kv
from lingu_ray.distill.donation import Donation, plan_donation
from lingu_ray.distill.teacher import Teacher

SIZES = {"hidden": 16, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 8}
CASES = [("shared_kv", "full"), ("shared_kv", "visual"), ("prompt_text", "full"), ("prompt_text", "visual")]


@dataclass
class Part:
    """What the plan should say of one sample: positions in it, and the index that the teacher counts each at."""

    donated: list[int]
    queries: list[int]
    indices: dict[int, int]
    with_kd: list[int]
    predicting: list[int]


def slow_part(sample: Sample, distilled: bool, context: str, scope: str) -> Part:
    """The rule for one sample, position by position."""
    ids, supervised, visual = sample.input_ids_T.tolist(), sample.supervised_T.tolist(), sample.visual_T.tolist()
    positions = range(len(ids))
    predicting = [p for p in positions if p + 1 in positions and supervised[p + 1]]
    readable = [p for p in positions if not visual[p] and ids[p] < VOCABULARY]
    with_kd = [p for p in predicting if p in readable] if distilled else []
    seen = [p for p in positions if with_kd and p <= with_kd[-1]]
    if context == "prompt_text":
        queries = [p for p in seen if p in readable]
        return Part([], queries, {p: index for index, p in enumerate(queries)}, with_kd, predicting)
    queries = with_kd if scope == "full" else [p for p in seen if p in readable]
    return Part([p for p in seen if p not in queries], queries, {p: p for p in seen}, with_kd, predicting)


@st.composite
def drawn_samples(draw: st.DrawFn) -> list[Sample]:
    """One to four short samples with any masks, some ids unknown to the teacher."""
    tokens = st.tuples(st.integers(0, VOCABULARY + 20), st.booleans(), st.integers(0, 3))
    samples = []
    for drawn in draw(st.lists(st.lists(tokens, min_size=1, max_size=9), min_size=1, max_size=4)):
        ids, supervised, visual = (torch.tensor(column) for column in zip(*drawn, strict=True))
        samples.append(Sample("s", len(samples), ids, supervised, visual == 0, {}))
    return samples


DRAWN = (drawn_samples(), st.lists(st.booleans(), min_size=4, max_size=4), st.sampled_from(CASES), st.booleans())


def plan(samples: list[Sample], distilled: list[bool], case: tuple[str, str], packing: bool) -> Donation | None:
    """The fast path's plan of the samples as one micro-batch."""
    batch = collate(samples, 0, packing)
    tensors = (batch.input_ids_BT, batch.sample_BT, batch.supervised_BT, batch.visual_BT)
    return plan_donation(*tensors, torch.tensor(distilled[: len(samples)]), VOCABULARY, *case)


def query_of(made: Donation) -> Any:
    """The teacher's part of a plan, its first field."""
    return next(iter(vars(made).values()))


def fields(of: Any) -> list[Any]:
    """The fields of a plan or of a teacher's query in the order of their definition, tensors as lists."""
    return [value.tolist() if isinstance(value, torch.Tensor) else value for value in vars(of).values()]


@given(*DRAWN)
def test_a_plan_is_what_the_rule_says(samples: list[Sample], distilled: list[bool], case: tuple, packing: bool):
    """Any micro-batch, padded and packed: positions, indices, counts and KD marks are those of the slow rule.

    So donated positions and queries are disjoint and together all that the last query with KD may see; under scope
    `visual` what the teacher can read is never donated; `prompt_text` donates nothing and leaves no gap in its indices.
    """
    parts = [slow_part(s, flag, *case) for s, flag in zip(samples, distilled, strict=False)]
    made = plan(samples, distilled, case, packing)
    if not any(part.with_kd for part in parts):
        assert made is None
        return
    starts = [sum(map(len, samples[:number])) if packing else 0 for number in range(len(samples))]

    def everywhere(kind: str) -> tuple[list[int], list[int], list[int], list[int]]:
        """Rows, columns and indices of all samples' positions of a kind, and how many a sample has."""
        found = [(number, p) for number, part in enumerate(parts) for p in getattr(part, kind)]
        rows = [0 if packing else number for number, _ in found]
        counts = [len(getattr(part, kind)) for part in parts if part.with_kd]
        return rows, [starts[n] + p for n, p in found], [parts[n].indices[p] for n, p in found], counts

    donated_rows, donated_columns, donated_indices, donated_counts = everywhere("donated")
    query_rows, query_columns, query_indices, query_counts = everywhere("queries")
    query_ids = [int(s.input_ids_T[p]) for s, part in zip(samples, parts, strict=True) for p in part.queries]
    has_kd = [p in part.with_kd for part in parts for p in part.queries]
    of_query = [donated_indices, donated_counts, query_ids, query_indices, query_counts, has_kd, max(map(len, samples))]
    marks = [p in part.with_kd for part in parts for p in part.predicting]
    assert fields(query_of(made)) == of_query
    assert fields(made)[1:] == [donated_rows, donated_columns, query_rows, query_columns, marks]


@cache
def decoder() -> Any:
    """A small frozen decoder: made once, as hypothesis runs a test many times."""
    return Teacher(tiny_teacher(**SIZES)).decoder


@settings(max_examples=40)
@given(*DRAWN[:3], st.randoms(use_true_random=False))
def test_a_query_sees_its_own_sample_up_to_itself(
    samples: list[Sample], distilled: list[bool], case: tuple, random: Random
):
    """Another donated key and value, or another query's token, changes what is at or after it in its sample only.

    Of that it changes all, so no mask hides too much (a query's own key aside). Elsewhere the bits are equal.
    """
    made = plan(samples, distilled, case, packing=True)
    if made is None:
        return
    donated_indices, donated_counts, query_ids, query_indices, query_counts, has_kd, _ = fields(query_of(made))
    queries = of_samples(query_counts, query_indices)
    items = of_samples(donated_counts, donated_indices) + queries
    kv_size = (SIZES["layers"], 2, len(donated_indices), SIZES["kv_heads"], SIZES["head_dim"])
    kv_L2PHE = torch.randn(kv_size, generator=torch.Generator().manual_seed(0))
    request = TeacherRequest(*vars(query_of(made)).values(), kv_L2PHE, torch.tensor(query_indices))
    chosen = random.randrange(len(items))
    if chosen < len(donated_indices):
        other_kv = kv_L2PHE.clone()
        other_kv[:, :, chosen] += 1
        other = replace(request, kv_L2PHE=other_kv)
    else:
        other_id = torch.tensor(query_ids)
        other_id[chosen - len(donated_indices)] += 1
        other = replace(request, query_id_Q=other_id % VOCABULARY)
    changed = (continue_from_kv(decoder(), request) != continue_from_kv(decoder(), other)).any(dim=1).tolist()
    number, index = items[chosen]
    asked = [query for query, kd in zip(queries, has_kd, strict=True) if kd]
    assert changed == [n == number and i >= index for n, i in asked]


def of_samples(counts: list[int], indices: list[int]) -> list[tuple[int, int]]:
    """Number of the sample and index in it, of items that are concatenated sample after sample."""
    numbers = [number for number, count in enumerate(counts) for _ in range(count)]
    return list(zip(numbers, indices, strict=True))
