"""Steps of the alignment: pictures with what they should choose, and how well held-out ones do."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from lingu_ray.corpus.pictures import Picture, Target
from lingu_ray.distill.align import Choices, Labels
from lingu_ray.distill.image_path import Kept
from lingu_ray.distill.inputs import ModelInputs


@dataclass
class Part:
    """A micro-batch: its pictures are those of its step at `places`; `kept`: what the last blocks get of them."""

    inputs: ModelInputs
    places: list[int]
    kept: Kept | None = None


@dataclass
class Step:
    """Pictures and their targets; `parts` where features are kept."""

    pictures: list[Picture]
    targets: list[list[Target]]
    parts: list[Part] = field(default_factory=list)

    @property
    def open_answers(self) -> frozenset[int]:
        """The candidates of open questions."""
        return frozenset(target.answer for of in self.targets for target in of if target.candidates is None)

    def candidates(self, place: int, target: Target) -> frozenset[int]:
        """The labels that the picture at `place` may choose."""
        if target.candidates is not None:
            return target.candidates
        return self.open_answers - {other.answer for other in self.targets[place]} | {target.answer}

    def asked(self, part: Part) -> list[tuple[int, Target]]:
        """The targets of a part's pictures, each with its picture's place."""
        return [(place, target) for place in part.places for target in self.targets[place]]

    def choices(self, part: Part, labels: Labels) -> tuple[Choices, list[int]]:
        """What a part's pictures may choose, and which label each column stands for."""
        asked = self.asked(part)
        candidates = [self.candidates(place, target) for place, target in asked]
        columns = sorted(frozenset().union(*candidates))
        column = {label: i for i, label in enumerate(columns)}
        allowed_JU = torch.zeros(len(asked), len(columns), dtype=torch.bool)
        for row, of_target in enumerate(candidates):
            allowed_JU[row, [column[label] for label in of_target]] = True
        index = {place: i for i, place in enumerate(part.places)}
        picture_J = torch.tensor([index[place] for place, _ in asked])
        answer_J = torch.tensor([column[target.answer] for _, target in asked])
        return Choices(picture_J, answer_J, allowed_JU, labels.directions(columns)), columns


def make_steps(pictures: list[Picture], targets: list[list[Target]], size: int) -> list[Step]:
    """The pictures that have targets, in their order, which is random already."""
    pairs = [(picture, of) for picture, of in zip(pictures, targets, strict=True) if of]
    cuts = (pairs[begin : begin + size] for begin in range(0, len(pairs), size))
    return [Step([picture for picture, _ in pairs], [of for _, of in pairs]) for pairs in cuts]


@dataclass
class Judged:
    """Held-out answers: how many, how many were chosen right, and how many without a look at the picture."""

    answers: int = 0
    right: int = 0
    blind: float = 0.0

    def add(self, target: Target, candidates: frozenset[int], chosen: int) -> None:
        """Count an answer; `chosen`: the label that was chosen."""
        self.answers += 1
        self.right += chosen == target.answer
        self.blind += 1 / len(candidates) if target.candidates is None else target.commonest == target.answer

    def as_json(self, after: Judged) -> dict[str, float]:
        """Shares, with those of another time."""
        n = self.answers
        return {"answers": n, "before": self.right / n, "after": after.right / n, "blind": self.blind / n}
