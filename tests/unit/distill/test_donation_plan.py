"""Donation plans against a second, slow writing of the rule: one sample and one position at a time, in plain lists."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import VOCABULARY, tiny_teacher
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lingu_ray.corpus.batch import collate
from lingu_ray.corpus.encode import Sample
from lingu_ray.distill.continuation import TeacherRequest, continue_from_kv
from lingu_ray.distill.donation import Donation, plan_donation
from lingu_ray.distill.teacher import Teacher

SIZES = {"hidden": 16, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 8}
CASES = [
    ("shared_kv", "full", "student"),
    ("shared_kv", "full", "teacher"),
    ("shared_kv", "visual", "student"),
    ("shared_kv", "visual", "teacher"),
    ("prompt_text", "full", "student"),
    ("prompt_text", "visual", "teacher"),
]


@dataclass
class Part:
    """What the teacher is asked at once: positions in a sample, and the index that the teacher counts each at."""

    sample: int
    donated: list[int]
    queries: list[int]
    indices: dict[int, int]
    with_kd: list[int]


def predicting(sample: Sample) -> list[int]:
    """Positions before a supervised one."""
    supervised = sample.supervised_T.tolist()
    return [p for p in range(len(supervised) - 1) if supervised[p + 1]]


def answers(sample: Sample) -> list[list[int]]:
    """The predicting positions of each answer: runs without a gap."""
    runs: list[list[int]] = []
    for position in predicting(sample):
        if not runs or position > runs[-1][-1] + 1:
            runs.append([])
        runs[-1].append(position)
    return runs


def slow_parts(number: int, sample: Sample, case: tuple[str, str, str]) -> list[Part]:
    """The rule for one distilled sample, position by position."""
    context, scope, earlier_turns = case
    ids, visual = sample.input_ids_T.tolist(), sample.visual_T.tolist()
    readable = [p for p in range(len(ids)) if not visual[p] and ids[p] < VOCABULARY]
    by_turn = context == "shared_kv" and scope == "full" and earlier_turns == "student"
    parts = []
    for asked in answers(sample) if by_turn else [predicting(sample)]:
        with_kd = [p for p in asked if p in readable]
        if not with_kd:
            continue
        seen = range(with_kd[-1] + 1)
        text = [p for p in seen if p in readable]
        if context == "prompt_text":
            parts.append(Part(number, [], text, {p: index for index, p in enumerate(text)}, with_kd))
        else:
            queries = with_kd if scope == "full" else text
            donated = [p for p in seen if p not in queries]
            parts.append(Part(number, donated, queries, {p: p for p in seen}, with_kd))
    return parts


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


def plan(samples: list[Sample], distilled: list[bool], case: tuple[str, str, str], packing: bool) -> Donation | None:
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

    So donated positions and queries of a part are disjoint and together all that its last query may see; under scope
    `visual` what the teacher can read is never donated; `prompt_text` donates nothing and leaves no gap in its indices.
    """
    parts = [part for n, s in enumerate(samples) if distilled[n] for part in slow_parts(n, s, case)]
    made = plan(samples, distilled, case, packing)
    if not parts:
        assert made is None
        return
    starts = [sum(map(len, samples[:number])) if packing else 0 for number in range(len(samples))]

    def everywhere(kind: str) -> tuple[list[int], list[int], list[int], list[int]]:
        """Rows, columns and indices of all parts' positions of a kind, and how many a part has."""
        found = [(part, p) for part in parts for p in getattr(part, kind)]
        rows = [0 if packing else part.sample for part, _ in found]
        counts = [len(getattr(part, kind)) for part in parts]
        return rows, [starts[part.sample] + p for part, p in found], [part.indices[p] for part, p in found], counts

    donated_rows, donated_columns, donated_indices, donated_counts = everywhere("donated")
    captured = sorted(set(zip(donated_rows, donated_columns, strict=True)))  # once, however many parts read it
    kv = [captured.index(place) for place in zip(donated_rows, donated_columns, strict=True)]
    query_rows, query_columns, query_indices, query_counts = everywhere("queries")
    query_ids = [int(samples[part.sample].input_ids_T[p]) for part in parts for p in part.queries]
    has_kd = [p in part.with_kd for part in parts for p in part.queries]
    longest = max(map(len, samples))
    of_query = [donated_indices, donated_counts, kv, query_ids, query_indices, query_counts, has_kd, longest]
    judged = {(part.sample, p) for part in parts for p in part.with_kd}
    marks = [(number, p) in judged for number, sample in enumerate(samples) for p in predicting(sample)]
    assert fields(query_of(made)) == of_query
    of_plan = [[row for row, _ in captured], [column for _, column in captured], query_rows, query_columns, marks]
    assert fields(made)[1:] == of_plan


@cache
def decoder() -> Any:
    """A small frozen decoder: made once, as hypothesis runs a test many times."""
    return Teacher(tiny_teacher(**SIZES)).decoder


@settings(max_examples=40)
@given(*DRAWN[:3], st.randoms(use_true_random=False))
def test_a_query_sees_its_own_sample_up_to_itself(
    samples: list[Sample], distilled: list[bool], case: tuple, random: Random
):
    """Another donated key and value, or another query's token, changes what is at or after it in its parts only.

    Of that it changes all, so no mask hides too much (a query's own key aside). Elsewhere the bits are equal.
    """
    made = plan(samples, distilled, case, packing=True)
    if made is None:
        return
    donated_indices, donated_counts, kv, query_ids, query_indices, query_counts, has_kd, _ = fields(query_of(made))
    queries = of_parts(query_counts, query_indices)
    donated = of_parts(donated_counts, donated_indices)
    captured = len(set(kv))
    kv_size = (SIZES["layers"], 2, captured, SIZES["kv_heads"], SIZES["head_dim"])
    kv_L2CHE = torch.randn(kv_size, generator=torch.Generator().manual_seed(0))
    request = TeacherRequest(*vars(query_of(made)).values(), kv_L2CHE, torch.tensor(query_indices))
    chosen = random.randrange(captured + len(queries))
    if chosen < captured:
        places = [place for place, index in zip(donated, kv, strict=True) if index == chosen]
        other_kv = kv_L2CHE.clone()
        other_kv[:, :, chosen] += 1
        other = replace(request, kv_L2CHE=other_kv)
    else:
        places = [queries[chosen - captured]]
        other_id = torch.tensor(query_ids)
        other_id[chosen - captured] += 1
        other = replace(request, query_id_Q=other_id % VOCABULARY)
    changed = (continue_from_kv(decoder(), request) != continue_from_kv(decoder(), other)).any(dim=1).tolist()
    asked = [query for query, kd in zip(queries, has_kd, strict=True) if kd]
    assert changed == [any(n == number and i >= index for number, index in places) for n, i in asked]


class Largest(TorchDispatchMode):
    """Keeps the number of elements of the largest tensor that is made."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return made


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_plan_grows_with_the_tokens_alone(case: tuple, packing: bool):
    """Not with samples times tokens, which are seconds and gigabytes where a GPU's micro-batch has many short rows."""
    ids_T, supervised_T = torch.arange(3, 15), torch.arange(12) >= 8
    samples = [Sample("s", i, ids_T, supervised_T, ids_T < 5, {}) for i in range(50)]
    with Largest() as largest:
        assert plan(samples, [True] * 50, case, packing) is not None
    assert largest.elements == 2 * 50 * 12  # row and column of each


def of_parts(counts: list[int], indices: list[int]) -> list[tuple[int, int]]:
    """Number of the part and index in its sample, of items that are concatenated part after part."""
    numbers = [number for number, count in enumerate(counts) for _ in range(count)]
    return list(zip(numbers, indices, strict=True))
