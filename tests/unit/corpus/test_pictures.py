"""Pictures of a corpus: each once, held-out ones apart; which answers are choices, and among which candidates."""

from collections.abc import Sequence

import pyarrow as pa
import pytest

from lingu_ray.atomic import write_json
from lingu_ray.corpus.pictures import (
    NOT_OF_THE_PICTURE,
    ONE_ANSWER,
    UNKNOWN,
    Picture,
    Pictures,
    choose_targets,
    read_pictures,
)
from lingu_ray.corpus.store import ROW_SCHEMA, Corpus, shard_name, write_rows

Pairs = Sequence[tuple[str, str]]


def record(position: int, images: Sequence[bytes], pairs: Pairs, source: str = "s") -> dict:
    """A row in which the pairs are turns."""
    roles = [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    return {"source": source, "position": position, "messages": roles, "images": list(images), "distill": False}


def corpus(folder, rows: list[dict], held_out: list[dict]) -> Corpus:
    """A corpus as a build leaves it."""
    write_rows(pa.Table.from_pylist(rows, ROW_SCHEMA), folder / shard_name(0))
    write_rows(pa.Table.from_pylist(held_out, ROW_SCHEMA), folder / "validation.parquet")
    write_json(folder / "manifest.json", {"rows": len(rows), "rows_per_shard": 100, "sources": {"s": {}}})
    return Corpus(folder)


def chosen(trained: list[Pairs], held_out: list[Pairs] = ()):
    """Targets of pictures of which these questions are asked."""
    return choose_targets(
        Pictures([Picture(0, list(of)) for of in trained], [Picture(0, list(of)) for of in held_out], 0, 0)
    )


def test_pictures_are_those_of_rows_with_one_image(tmp_path):
    """Rows of one picture are put together, with each turn that is a target; several images or none are no picture."""
    unsupervised = record(3, [b"a"], [("<image>Shape?", "round")])
    unsupervised["messages"][-1]["supervised"] = False
    rows = [
        record(0, [b"a"], [("<image>Color?", "red"), ("And <image>\nsize?", " big ")]),
        record(1, [], [("Color?", "none")]),
        record(2, [b"a", b"b"], [("<image><image>Same?", "no")]),
        unsupervised,
        record(4, [b"b"], [("<image>Color?", "blue")]),
        record(5, [b"a"], [("<image>Color?", "red")]),
        record(6, [b"held"], [("<image>Color?", "red")]),
        record(7, [b"late"], [("<image>Color?", "red")]),
    ]
    held_out = [record(0, [b"held"], [("<image>Size?", "big")]), record(1, [], [("Size?", "none")])]
    found = read_pictures(corpus(tmp_path, rows, held_out), max_rows=7)
    assert [(picture.row, picture.asked) for picture in found.trained] == [
        (0, [("Color?", "red"), ("And  \nsize?".strip(), "big")]),
        (4, [("Color?", "blue")]),
    ]
    assert [picture.asked for picture in found.held_out] == [[("Size?", "big")]]
    assert (found.rows, found.used) == (7, 4)


def test_candidates_are_the_answers_to_the_same_question():
    """Color and shape are different choices of one picture."""
    pictures = [
        [("Color?", color), ("Shape?", shape)] for color in ("red", "blue") for shape in ("round", "long") for _ in "12"
    ]
    targets = chosen(pictures, [[("Color?", "red"), ("Shape?", "green"), ("Size?", "big")]])
    names = {label: i for i, label in enumerate(targets.labels)}
    assert targets.labels == sorted(["red", "blue", "round", "long", "green", "big"])
    color, shape = targets.trained[0]
    assert (color.answer, color.candidates) == (names["red"], {names["red"], names["blue"]})
    assert (shape.answer, shape.candidates) == (names["round"], {names["round"], names["long"]})
    assert [target.answer for target in targets.held_out[0]] == [names["red"]]
    assert targets.left_out == {UNKNOWN: 1}, "a shape that no trained picture has; size is no question of theirs"


@pytest.mark.parametrize(
    ("pictures", "reason", "count"),
    [
        ([[("What?", "a picture")]] * 3, ONE_ANSWER, 3),
        ([[("Red?", "yes"), ("Blue?", "no")], [("Red?", "no"), ("Blue?", "yes")]] * 2, NOT_OF_THE_PICTURE, 8),
    ],
)
def test_what_teaches_nothing_is_left_out_and_counted(pictures, reason, count):
    """One answer alone is no choice; yes and no are both said of the same picture, and neither is what it shows."""
    targets = chosen(pictures)
    assert not any(targets.trained) and targets.left_out == {reason: count}


def test_what_a_picture_is_called_elsewhere_is_no_candidate_against_it():
    """A car that is red beside a house that is blue: blue is no wrong answer for the car, and green is."""
    two = [[("Car?", "red"), ("House?", "blue")], [("Car?", "blue"), ("House?", "green")], [("Car?", "green")]] * 2
    targets = chosen(two)
    label = targets.labels.index
    assert targets.trained[0][0].candidates == {label("red"), label("green")}
    assert targets.trained[2][0].candidates == {label("red"), label("green"), label("blue")}


def test_captions_are_open():
    """Answers that are all distinct are chosen among those of the step."""
    targets = chosen([[("Describe it.", f"caption {i}")] for i in range(5)], [[("Describe it.", "a new one")]])
    assert all(target.candidates is None for [target] in targets.trained)
    assert targets.labels[targets.held_out[0][0].answer] == "a new one"
