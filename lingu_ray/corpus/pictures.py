"""The pictures of a corpus, each once with all questions and answers about it, for the alignment.

A picture in a held-out row is held out completely: no other question about it is trained on.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from lingu_ray.content import bytes_identity
from lingu_ray.corpus.row import PLACEHOLDER, Messages, Row, is_target
from lingu_ray.corpus.store import Corpus

MOST_CANDIDATES = 1000


@dataclass
class Picture:
    """One picture. `row`: position of a row that shows it, or a held-out row itself; `asked`: `(question, answer)`."""

    row: int | Row
    asked: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Pictures:
    """Pictures to train on, and held-out ones. `rows`: rows that were read; `used`: those of them with one picture."""

    trained: list[Picture]
    held_out: list[Picture]
    rows: int
    used: int


def read_pictures(corpus: Corpus, max_rows: int) -> Pictures:
    """The pictures of the first `max_rows` rows and of the held-out rows, from rows with exactly one image."""
    held_out: dict[str, Picture] = {}
    for row in (row for rows in corpus.validation().values() for row in rows):
        _add(held_out, row, row)
    trained: dict[str, Picture] = {}
    rows, used = min(len(corpus), max_rows), 0
    for position in range(rows):
        row = corpus.row(position)
        if len(row.images) == 1 and bytes_identity(row.images[0]) not in held_out:
            used += 1
            _add(trained, row, position)
    return Pictures(list(trained.values()), list(held_out.values()), rows, used)


def _add(pictures: dict[str, Picture], row: Row, place: int | Row) -> None:
    if len(row.images) != 1:
        return
    picture = pictures.setdefault(bytes_identity(row.images[0]), Picture(place))
    picture.asked.extend(pair for pair in _turns(row.messages) if pair not in picture.asked)


def _turns(messages: Messages) -> Iterator[tuple[str, str]]:
    """Question and answer of each turn that is a target of the loss."""
    for before, message in itertools.pairwise(messages):
        if before["role"] == "user" and is_target(message) and (answer := message["content"].strip()):
            yield before["content"].replace(PLACEHOLDER, " ").strip(), answer


@dataclass(frozen=True)
class Target:
    """An answer that a picture should choose among `candidates`, itself included; labels by number.

    `candidates`: None for an open question, whose candidates are the open answers of the step. `commonest`: the most
    frequent answer to the question.
    """

    answer: int
    candidates: frozenset[int] | None
    commonest: int


@dataclass(frozen=True)
class Targets:
    """The targets of all pictures. `labels`: distinct answers; `trained`, `held_out`: the targets of each picture;
    `left_out`: number of answers that teach nothing or cannot be judged, by reason.
    """

    labels: list[str]
    trained: list[list[Target]]
    held_out: list[list[Target]]
    left_out: dict[str, int]


ONE_ANSWER = "to questions with one answer alone"
NOT_OF_THE_PICTURE = "to questions whose answers contradict each other on one picture, such as yes and no"
UNKNOWN = "held out, and given to that question by no trained picture"


def choose_targets(pictures: Pictures) -> Targets:
    """Turn questions and answers into choices.

    A question is closed if it has at most `MOST_CANDIDATES` different answers, each given twice on average; all of them
    are candidates. Else it is open. Another answer of the same picture is no candidate against the right one. Left out
    are questions that always have the same answer, and those for which that rule leaves no choice on most pictures.
    """
    given: dict[str, Counter[str]] = defaultdict(Counter)
    for picture in pictures.trained:
        for question, answer in picture.asked:
            given[question][answer] += 1
    said = {answer for of in (pictures.trained, pictures.held_out) for picture in of for _, answer in picture.asked}
    choices = _Choices({q: counts for q, counts in given.items() if len(counts) > 1}, sorted(said))
    asked: Counter[str] = Counter()
    without_choice: Counter[str] = Counter()
    for picture in pictures.trained:
        for question, target in choices.of(picture):
            asked[question] += 1
            without_choice[question] += not _is_choice(target)
    useless = [question for question in asked if 2 * without_choice[question] > asked[question]]
    for question in useless:
        del choices.counts[question]
    unknown = sum(question in choices.counts for picture in pictures.held_out for question, _ in picture.asked)
    unknown -= sum(len(list(choices.of(picture))) for picture in pictures.held_out)
    left_out = {
        ONE_ANSWER: sum(counts.total() for counts in given.values() if len(counts) == 1),
        NOT_OF_THE_PICTURE: sum(asked[question] for question in useless),
        UNKNOWN: unknown,
    }

    def targets(of: list[Picture]) -> list[list[Target]]:
        return [[target for _, target in choices.of(picture) if _is_choice(target)] for picture in of]

    shown = {reason: count for reason, count in left_out.items() if count}
    return Targets(choices.labels, targets(pictures.trained), targets(pictures.held_out), shown)


class _Choices:
    """The counted answers to each question, from which a picture's targets follow."""

    def __init__(self, counts: dict[str, Counter[str]], labels: list[str]):
        self.counts, self.labels = counts, labels
        self.number = {label: i for i, label in enumerate(labels)}
        self.candidates = {question: self._candidates(of_question) for question, of_question in counts.items()}

    def _candidates(self, counts: Counter[str]) -> frozenset[int] | None:
        closed = counts.total() >= 2 * len(counts) and len(counts) <= MOST_CANDIDATES
        return frozenset(self.number[answer] for answer in counts) if closed else None

    def of(self, picture: Picture) -> Iterator[tuple[str, Target]]:
        """Questions and targets of a picture, without answers that are no candidates of their question."""
        own = {self.number[answer] for _, answer in picture.asked}
        for question, answer in picture.asked:
            if question not in self.counts:
                continue
            label, candidates = self.number[answer], self.candidates[question]
            if candidates is not None and label not in candidates:
                continue
            allowed = None if candidates is None else candidates - own | {label}
            [(commonest, _)] = self.counts[question].most_common(1)
            yield question, Target(label, allowed, self.number[commonest])


def _is_choice(target: Target) -> bool:
    return target.candidates is None or len(target.candidates) > 1
