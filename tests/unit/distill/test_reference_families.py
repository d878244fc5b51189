"""Every family's fast path against the reference, with a teacher of other weights than the student's decoder.

Where both are equal, it makes no difference whether a key is donated or computed by the teacher; here it does.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
import torch
from families import BOS, FAMILIES, PACKABLE, PLACEHOLDER, Family
from reference_method import Objective
from reference_pairs import ByTransformers
from reference_runs import Comparison, Step, float64_throughout

from lingu_ray.corpus.encode import Sample

pytestmark = pytest.mark.slow  # the slow reference, of every family

ASKED = {
    "full-padded": (Objective(), False),
    "full-packed": (Objective(w_kd=2.0, temperature=1.5), True),
    "earlier_turns-packed": (Objective(earlier_turns="teacher"), True),
    "visual-padded": (Objective(scope="visual"), False),
    "visual-packed": (Objective(scope="visual"), True),
    "prompt_text-packed": (Objective(context="prompt_text"), True),
}
UNPACKED = {  # for a family whose packed rows see what they should not
    "full-padded": (Objective(w_kd=2.0, temperature=1.5), False),
    "earlier_turns-padded": (Objective(earlier_turns="teacher"), False),
    "visual-padded": (Objective(scope="visual"), False),
    "prompt_text-padded": (Objective(context="prompt_text"), False),
}
CASES = [
    pytest.param(name, *case, id=f"{name}-{words}")
    for name in FAMILIES
    for words, case in (ASKED if name in PACKABLE else UNPACKED).items()
]


@pytest.fixture(scope="module", autouse=True)
def exact() -> Iterator[None]:
    """All in float64."""
    with float64_throughout():
        yield


def samples(family: Family) -> Step:
    """Three samples of one micro-batch, their answers marked by hand: `[` and `]` stand before and after one.

    1. Two images, of different sizes where the family has them; an answer, another of one token, and text after it.
    2. Text: an answer right after BOS, longer than a sliding window; a turn that is not supervised; another answer.
    3. One image, not distilled.
    """
    generator = torch.Generator().manual_seed(5)
    (one, two), several = family.media(generator, 2, False)
    (lone,), single = family.media(generator, 1, True)
    if family.media_first:
        first = [*one, *two, BOS, 7, 30, 12, "[", 9, 4, 21, "]", 8, 17, "[", 40, "]", 5, 6]
        third = [*lone, BOS, 11, "[", 60, 31, "]"]
    else:
        first = [BOS, 7, *one, 30, 12, *two, 15, 3, "[", 9, 4, 21, "]", 8, 17, "[", 40, "]", 5, 6]
        third = [BOS, 11, 19, *lone, 6, "[", 60, 31, "]"]
    text = [BOS, "[", 9, 14, 77, 3, 50, 23, 8, 61, "]", 5, 44, 12, 90, 33, "[", 7, 18, "]"]
    return [[marked("text", first, several), marked("text", text, {}), marked("pictures", third, single)]]


def marked(source: str, marks: list, vision: dict[str, torch.Tensor]) -> Sample:
    """The sample of these ids and marks."""
    ids, supervised, inside = [], [], False
    for mark in marks:
        if isinstance(mark, str):
            inside = mark == "["
        else:
            ids.append(mark)
            supervised.append(inside)
    ids_T = torch.tensor(ids)
    return Sample(source, 0, ids_T, torch.tensor(supervised), ids_T == PLACEHOLDER, vision)


@cache
def comparison(name: str) -> Comparison:
    """The family's pair, its teacher of another seed than the decoder of its student."""
    family = FAMILIES[name]
    vlm, lm = (model.double() for model in (family.student(family.teacher()), family.teacher(seed=7)))
    if hasattr(family.decoder, "num_experts"):
        for model in (vlm, lm):
            model.set_experts_implementation("eager")  # the others have no float64
    return Comparison(vlm, lm, ByTransformers, samples(family))


@pytest.mark.parametrize(("name", "objective", "packing"), CASES)
def test_unequal_decoders(name: str, objective: Objective, packing: bool):
    """Loss, CE and KD of every token and the gradient of every parameter, whoever's keys the teacher has to read."""
    comparison(name).agree(objective, packing)
