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


def test_sentences_cannot_be_judged_without_the_picture(images: tuple[Path, list[Digit], list[Digit]]) -> None:
    """The same question has other answers for other digits; the same seed asks the same questions."""
    _, learnt, _ = images
    questions = digits.ask(digits.LONG, learnt, 800, seed=2)
    answers = {question.question: set() for question in questions}
    for question in questions:
        answers[question.question].add(question.answer)
    assert len(answers) == 6 and all(len(found) == 10 for found in answers.values())
    assert questions == digits.ask(digits.LONG, learnt, 800, seed=2)


def test_the_teacher_reads_every_sentence_about_digits_in_words() -> None:
    """What is asked about pictures is told about named digits: question, digit and answer."""
    told = digits.told_in_words()
    assert len(told) == len(set(told)) == 120
    for topic in digits.TOPICS:
        for digit in (Digit("", value) for value in range(10)):
            asked = [chat.question for chat in told if chat.answer == topic.sentence(digit)]
            assert any(digit.word in question for question in asked)
