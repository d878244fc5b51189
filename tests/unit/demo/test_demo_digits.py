"""The demo's pictures and questions."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from lingu_ray.demo import digits
from lingu_ray.demo.digits import Digit


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Digit], list[Digit]]:
    folder = tmp_path_factory.mktemp("digits") / "images"
    return folder, *digits.write_images(folder)


def test_no_picture_is_both_learnt_and_held_out(images: tuple[Path, list[Digit], list[Digit]]) -> None:
    """All 1797 pictures are written, each in one split, and questions use their own split's pictures alone."""
    folder, learnt, held_out = images
    names = [digit.image for digit in learnt + held_out]
    assert len(names) == len(set(names)) == 1797
    assert {digit.value for digit in held_out} == set(range(10))
    asked = digits.ask(digits.PRACTICE + digits.LONG, learnt, 3000, seed=0)
    assert not {image for question in asked for image in question.images} & {digit.image for digit in held_out}
    with Image.open(folder / names[0]) as image:
        assert image.size == (digits.IMAGE_SIDE, digits.IMAGE_SIDE)


def test_short_answers_are_right(images: tuple[Path, list[Digit], list[Digit]]) -> None:
    """The answer of every kind follows from the digits in the pictures, and kinds are asked equally often."""
    _, _, held_out = images
    value = {digit.image: digit.value for digit in held_out}
    questions = digits.ask(digits.SHORT, held_out, 800, seed=1)
    assert set(Counter(question.kind for question in questions).values()) == {200}
    for question in questions:
        shown = [value[image] for image in question.images]
        assert question.question.count("<image>") == len(shown)
        if question.kind == "name":
            assert digits.WORDS[shown[0]] == question.answer
        elif question.kind == "parity":
            assert question.answer == ("even", "odd")[shown[0] % 2]
        elif question.kind == "arithmetic":
            doubled = "twice" in question.question or "Double" in question.question
            assert int(question.answer) == (2 * shown[0] if doubled else shown[0] + 1)
        else:
            assert question.answer == ("first" if shown[0] > shown[1] else "second")
            assert shown[0] != shown[1]


def test_answers_vary_in_wording_and_depend_on_the_picture(images: tuple[Path, list[Digit], list[Digit]]) -> None:
    """Long answers name the digit, in many wordings; the same seed asks the same questions."""
    _, learnt, _ = images
    word = {digit.image: digit.word for digit in learnt}
    questions = digits.ask(digits.LONG, learnt, 200, seed=2)
    assert all(word[question.images[0]] in question.answer for question in questions)
    assert len({question.answer for question in questions}) > 100
    assert len({question.question for question in questions}) > 1
    assert questions == digits.ask(digits.LONG, learnt, 200, seed=2)
