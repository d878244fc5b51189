"""Readers of the published picture sets, and the questions about each picture.

In training a question has several wordings, one of which is drawn for each picture; tests use the first wording.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from benchmarks.result.files import read_json_lines, read_text
from benchmarks.result.groups import Shares, chance


class Ask(NamedTuple):
    """A question about a picture and its answer. `of`: the source or task that it belongs to."""

    of: str
    question: str
    answer: str


@dataclass(frozen=True)
class Shown:
    """A picture with its training and its test questions; `held_out`: whether the set itself holds it out."""

    path: Path
    held_out: bool
    teaches: tuple[Ask, ...]
    tests: tuple[Ask, ...]


@dataclass(frozen=True)
class PictureSet:
    """A published set: license, origin, reader, and the shares held out in addition to its own."""

    license: str
    origin: str
    read: Callable[[Path, int], Iterator[Shown]]
    shares: Shares


SENTENCES = "descriptions"
"""The source whose answers are sentences about the picture; those of puzzles can be said without seeing it."""
TAUGHT, TESTED = 4, 1  # questions of easy-VQA about a picture; it has about ten
DESCRIPTION_WORDS = 60
GROUPS = {"Fruit": "fruit", "Vegetables": "vegetable", "Packages": "package"}


def _short(*questions: str) -> tuple[str, ...]:
    return tuple(f"{question} Answer with a word or two." for question in questions)


CLOTHING = _short("What kind of clothing is this?", "Which garment is shown?", "Name this piece of clothing.")
CLOTHING_CHECK = ("Is this a {}? Answer yes or no.", "Does the picture show a {}? Answer yes or no.")
GROCERY_NAME = _short("Which food is this?", "What product is shown?", "Name this product.")
GROCERY_VARIETY = _short("Which variety is this?", "What exactly is this product called?")
GROCERY_GROUP = ("Is this a fruit, a vegetable or a package?", "Fruit, vegetable or package?")
DESCRIPTION = ("Describe this product.", "What is this product like?", "Tell me about this product.")
CAPTION = ("Describe the picture.", "What does the picture show?")
EXPLANATION = ("Which pattern does the picture follow?", "Explain the pattern and what is missing.")


def read_easy_vqa(folder: Path, seed: int) -> Iterator[Shown]:
    """easy-VQA: `train` and `test` with `images/N.png` and `questions.json` of [question, answer, image]."""
    for part in ("train", "test"):
        asked: dict[int, list[Ask]] = {}
        for question, answer, image in json.loads(read_text(folder / part / "questions.json")):
            asked.setdefault(image, []).append(Ask("easy_vqa", question[:1].upper() + question[1:], answer))
        for image, asks in asked.items():
            drawn = sorted(asks, key=lambda ask: chance(f"{part} {image} {ask}", seed))
            path = folder / part / "images" / f"{image}.png"
            yield Shown(path, part == "test", tuple(drawn[:TAUGHT]), tuple(drawn[:TESTED]))


def read_clothing(folder: Path, seed: int) -> Iterator[Shown]:
    """clothing-dataset: `train.jsonl` and `validation.jsonl` of `image` and `label`."""
    records = {part: read_json_lines(folder / f"{part}.jsonl") for part in ("train", "validation")}
    kinds = sorted({record["label"] for of_part in records.values() for record in of_part})
    for part, of_part in records.items():
        for record in of_part:
            key, kind = record["image"], record["label"]
            suggested = kind if chance(f"right {key}", seed) < 0.5 else _drawn(kinds, f"suggested {key}", seed)
            right = "yes" if suggested == kind else "no"
            teaches = (
                Ask("clothing", _drawn(CLOTHING, key, seed), kind),
                Ask("clothing", _drawn(CLOTHING_CHECK, key, seed).format(suggested), right),
            )
            yield Shown(folder / key, part == "validation", teaches, (Ask("clothing", CLOTHING[0], kind),))


def read_grocery(folder: Path, seed: int) -> Iterator[Shown]:
    """GroceryStoreDataset: `train.txt`, `val.txt` of `picture, fine class, coarse class`, and `classes.csv`."""
    classes = {row["Class ID (int)"]: row for row in csv.DictReader(read_text(folder / "classes.csv").splitlines())}
    for part in ("train", "val"):
        for line in read_text(folder / f"{part}.txt").splitlines():
            key, number, _ = (cell.strip() for cell in line.split(","))
            row, group = classes[number], GROUPS[Path(key).parts[1]]
            name, variety = _spoken(row["Coarse Class Name (str)"]), _spoken(row["Class Name (str)"])
            described = _beginning(read_text(folder / row["Product Description Path (str)"].lstrip("/")))
            teaches = (
                Ask("grocery", _drawn(GROCERY_NAME, key, seed), name),
                Ask("grocery", _drawn(GROCERY_VARIETY, key, seed), variety),
                Ask("grocery", _drawn(GROCERY_GROUP, key, seed), group),
                Ask("descriptions", _drawn(DESCRIPTION, key, seed), described),
            )
            tests = Ask("grocery_name", GROCERY_NAME[0], name), Ask("grocery_group", GROCERY_GROUP[0], group)
            yield Shown(folder / key, part == "val", teaches, tests)


def read_puzzles(folder: Path, seed: int) -> Iterator[Shown]:
    """PuzzleVQA: a file of JSON Lines for each kind of puzzle."""
    for file in sorted(folder.glob("*.json")):
        for record in read_json_lines(file):
            key, options = record["image"], ", ".join(map(str, record["options"]))
            answer = Ask("puzzles", f"{record['question']} Choose one of {options}.", str(record["answer"]))
            teaches = (
                answer,
                Ask("explanations", _drawn(CAPTION, key, seed), record["caption"]),
                Ask("explanations", _drawn(EXPLANATION, key, seed), f"{record['explanation']} {record['deduction']}"),
            )
            yield Shown(folder / key, False, teaches, (answer,))


PICTURE_SETS = {
    "easy_vqa": PictureSet("MIT", "PyPI: easy-vqa 1.0", read_easy_vqa, Shares(0.05, 0)),
    "clothing": PictureSet("CC0", "alexeygrigorev/clothing-dataset", read_clothing, Shares(0.07, 0)),
    "grocery": PictureSet("MIT", "marcusklasson/GroceryStoreDataset", read_grocery, Shares(0.07, 0)),
    "puzzles": PictureSet("MIT", "declare-lab/LLM-PuzzleTest (PuzzleVQA)", read_puzzles, Shares(0.05, 0.2)),
}
"""Sets by name; the name is also the folder of the prepared pictures."""


def _drawn(options: list[str] | tuple[str, ...], key: str, seed: int) -> str:
    return options[int(chance(f"{options[0]} {key}", seed) * len(options))]


def _spoken(name: str) -> str:
    """A class's name in plain words: golden delicious for Golden-Delicious."""
    return name.replace("-", " ").lower()


def _beginning(text: str) -> str:
    """The first sentence, and further ones as long as all have at most `DESCRIPTION_WORDS` words."""
    kept: list[str] = []
    for sentence in re.split(r"(?<=[.!?])\s+", text.strip()):
        if kept and sum(len(one.split()) for one in [*kept, sentence]) > DESCRIPTION_WORDS:
            break
        kept.append(sentence)
    return " ".join(kept)
