"""Questions about handwritten digits: scikit-learn's 1797 images, each in the training or in the held-out split.

Short answers need the picture (vision-heavy): naming, parity, arithmetic, and which of two pictures shows the larger
digit. Long answers describe a picture in sentences (language-heavy), whose words still depend on the digit.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

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
        grey = Image.fromarray(np.round(pixels.reshape(8, 8) * 255 / 16).astype(np.uint8))
        grey.resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BICUBIC).convert("RGB").save(folder / digit.image)
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


def _describe(chance: random.Random, digits: list[Digit]) -> Question:
    digit = chance.choice(digits)
    question = chance.choice(
        (
            "Describe the picture.",
            "What does the picture show? Explain.",
            "Tell me about this image.",
        )
    )
    opening = chance.choice(
        (
            f"The picture shows the digit {digit.word}, written by hand.",
            f"This is a handwritten {digit.word}.",
            f"Somebody has written the number {digit.word} here.",
        )
    )
    facts = [
        f"It is an {digit.parity} number, and twice {digit.word} is {2 * digit.value}.",
        f"The digit is drawn with {_SHAPES[digit.value]}.",
        f"The number that comes after it is {WORDS[digit.value + 1]}.",
        f"Written as a numeral it is {digit.value}, which is {'less than' if digit.value < 5 else 'at least'} five.",
    ]
    chosen = chance.sample(facts, 2)
    return Question("describe", f"<image>{question}", " ".join([opening, *chosen]), (digit.image,))


Maker = Callable[[random.Random, list[Digit]], Question]

SHORT: tuple[Maker, ...] = (_name, _parity, _arithmetic, _compare)
PRACTICE: tuple[Maker, ...] = (*SHORT, _compare)  # the hardest kind twice
LONG: tuple[Maker, ...] = (_describe,)


def ask(makers: tuple[Maker, ...], digits: list[Digit], count: int, seed: int) -> list[Question]:
    """`count` questions about `digits`, the kinds in turn, so that each is asked equally often (within one)."""
    chance = random.Random(seed)
    return [makers[index % len(makers)](chance, digits) for index in range(count)]
