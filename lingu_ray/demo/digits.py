"""Questions about handwritten digits: scikit-learn's 1797 images, each in the training or in the held-out split.

Short answers are vision-heavy: naming, parity, arithmetic, and which of two pictures shows the larger digit. Answers in
sentences are language-heavy, and each has a word that depends on the picture: a teacher without the picture cannot
judge it. The teacher has read the same sentences about digits that were named in words.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from lingu_ray.demo.chats import Chat

IMAGE_SIDE = 32  # pixels, enlarged from 8
HELD_OUT_EVERY = 5  # every fifth image is held out

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_SHAPES = (
    "a single closed loop",
    "one upright stroke",
    "a curve above a flat base",
    "two open curves",
    "straight strokes that cross",
    "a flat top above a curve",
    "a loop below a long stroke",
    "a flat top and a slanted stroke",
    "two closed loops",
    "a loop above a long stroke",
)


@dataclass(frozen=True)
class Digit:
    """One picture: its file name and the digit that it shows."""

    image: str
    value: int

    @property
    def word(self) -> str:
        return WORDS[self.value]

    @property
    def parity(self) -> str:
        return "odd" if self.value % 2 else "even"


@dataclass(frozen=True)
class Question:
    """A question about one or two pictures, with its answer; `kind` is what it asks for."""

    kind: str
    question: str
    answer: str
    images: tuple[str, ...]

    def training_record(self) -> dict[str, object]:
        """The record of a `prompt_completion` source."""
        return {"prompt": self.question, "completion": self.answer, "images": list(self.images)}

    def evaluation_item(self, folder: str) -> dict[str, object]:
        """The item of an `exact_match` task, with the images' paths from the item file's folder."""
        return {"question": self.question, "answer": self.answer, "image": [f"{folder}/{i}" for i in self.images]}


def write_images(folder: Path) -> tuple[list[Digit], list[Digit]]:
    """Write all pictures as PNG under `folder`; returns training and held-out digits, image names relative to it."""
    pixels_I64, values_I = load_digits(return_X_y=True)  # I images, pixels from 0 to 16
    folder.mkdir(parents=True)
    splits: tuple[list[Digit], list[Digit]] = ([], [])
    for index, (pixels, value) in enumerate(zip(pixels_I64, values_I, strict=True)):
        digit = Digit(f"{index:04}.png", int(value))
        gray = Image.fromarray(np.round(pixels.reshape(8, 8) * 255 / 16).astype(np.uint8))
        gray.resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BICUBIC).convert("RGB").save(folder / digit.image)
        splits[index % HELD_OUT_EVERY == 0].append(digit)
    return splits


def _name(chance: random.Random, digits: list[Digit]) -> Question:
    digit = chance.choice(digits)
    question = chance.choice(
        ("Which digit is this?", "What digit do you see?", "Name the digit.", "Which number is written here?")
    )
    return Question("name", f"<image>{question}", digit.word, (digit.image,))


def _parity(chance: random.Random, digits: list[Digit]) -> Question:
    digit = chance.choice(digits)
    question = chance.choice(
        ("Is this digit odd or even?", "Odd or even?", "Is the number in the picture even or odd?")
    )
    return Question("parity", f"<image>{question}", digit.parity, (digit.image,))


def _arithmetic(chance: random.Random, digits: list[Digit]) -> Question:
    digit = chance.choice(digits)
    question, answer = chance.choice(
        (
            ("What is twice this digit?", 2 * digit.value),
            ("Double this digit.", 2 * digit.value),
            ("What is this digit plus one?", digit.value + 1),
            ("Which number comes after this digit?", digit.value + 1),
        )
    )
    return Question("arithmetic", f"<image>{question}", str(answer), (digit.image,))


def _compare(chance: random.Random, digits: list[Digit]) -> Question:
    first = chance.choice(digits)
    second = chance.choice([digit for digit in digits if digit.value != first.value])
    question = chance.choice(
        ("Which picture shows the larger digit?", "Where is the larger digit?", "Which of the two digits is larger?")
    )
    answer = "first" if first.value > second.value else "second"
    return Question("compare", f"<image><image>{question}", answer, (first.image, second.image))


@dataclass(frozen=True)
class Topic:
    """A topic for sentences about a digit: ways to ask for it, and the sentence for each digit."""

    questions: tuple[str, ...]
    sentence: Callable[[Digit], str]


TOPICS = (
    Topic(
        ("Describe the picture.", "What does it show?"),
        lambda digit: f"It shows the digit {digit.word}, written by hand.",
    ),
    Topic(
        ("How is it drawn?", "Describe its strokes."),
        lambda digit: f"It is drawn with {_SHAPES[digit.value]}.",
    ),
    Topic(
        ("What follows it?", "Say which number comes next."),
        lambda digit: f"The number after it is {WORDS[digit.value + 1]}.",
    ),
)


def _sentence(topic: Topic, chance: random.Random, digits: list[Digit]) -> Question:
    digit = chance.choice(digits)
    return Question("sentence", f"<image>{chance.choice(topic.questions)}", topic.sentence(digit), (digit.image,))


def told_in_words() -> list[Chat]:
    """The same questions about digits that are named in words: a language model can answer them."""
    named = ("The digit {}.", "Here is {}.")
    return [
        Chat(f"{name.format(digit.word)} {question}", topic.sentence(digit))
        for digit in (Digit("", value) for value in range(10))
        for topic in TOPICS
        for question in topic.questions
        for name in named
    ]


Maker = Callable[[random.Random, list[Digit]], Question]

SHORT: tuple[Maker, ...] = (_name, _parity, _arithmetic, _compare)
PRACTICE: tuple[Maker, ...] = (*SHORT, _compare)  # the hardest kind twice
LONG: tuple[Maker, ...] = tuple(partial(_sentence, topic) for topic in TOPICS)


def ask(makers: tuple[Maker, ...], digits: list[Digit], count: int, seed: int) -> list[Question]:
    """`count` questions about `digits`, the kinds in turn, so that each is asked equally often (within one)."""
    chance = random.Random(seed)
    return [makers[index % len(makers)](chance, digits) for index in range(count)]
