"""Language metrics, worked out by hand."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from lingu_ray.config import TASK_TYPES, TaskConfig
from lingu_ray.evaluation.metrics.metric import Columns, Scores
from lingu_ray.evaluation.metrics.short_answers import exact_match, normalize
from lingu_ray.evaluation.tasks.judging import METRICS, judge_task


def judge(type: str, columns: Columns) -> Scores:
    """Judge with the type's metric."""
    return METRICS[type].judge(columns)


def level(scores: Scores, extra: str | None = None) -> float:
    """Σ / Σ weight, of the score or an extra."""
    return sum(scores.extra[extra] if extra else scores.score) / sum(scores.weight)


def test_every_type_has_a_metric() -> None:
    """The registry joins language, vision and the harness, and nothing else."""
    assert set(METRICS) == {type for types in TASK_TYPES.values() for type in types}
    assert [type for type, metric in METRICS.items() if not metric.higher_is_better] == ["perplexity"]


def test_multiple_choice_by_likelihood_and_per_character() -> None:
    """A long option loses by its sum and may win by the character; of equals the first is taken."""
    columns: Columns = {
        "item": ["1", "2", "3"],
        "logliks": [[-4.0, -6.0], [-1.0, -3.0], [-2.0, -2.0]],
        "lengths": [[2, 6], [2, 3], [5, 5]],
        "gold": [1, 0, 1],
    }
    scores = judge("multiple_choice", columns)
    extra = {"acc_norm": [1.0, 1.0, 0.0], "nats_per_choice": [6.0, 1.0, 2.0]}  # nats of the right option
    assert scores == Scores([0.0, 1.0, 0.0], [1.0] * 3, extra)


def test_the_metric_that_is_not_reported_stays_beside_it() -> None:
    """`metric: acc_norm` judges by the character and keeps accuracy as an extra; without it the other way round."""
    columns: Columns = {"item": ["1"], "logliks": [[-4.0, -6.0]], "lengths": [[2, 6]], "gold": [1]}
    task = TaskConfig(name="t", kind="language", type="multiple_choice", path="-")
    plain, scores = judge_task(task, {"m": columns})
    nats = {"nats_per_choice": [6.0]}
    assert plain.name == "acc" and scores["m"] == Scores([0.0], [1.0], {"acc_norm": [1.0], **nats})
    normed, scores = judge_task(task.model_copy(update={"metric": "acc_norm"}), {"m": columns})
    assert normed.name == "acc_norm" and scores["m"] == Scores([1.0], [1.0], {"acc": [0.0], **nats})
    with pytest.raises(ValidationError, match="other types have one metric"):
        TaskConfig(name="t", kind="language", type="last_word", path="-", metric="acc_norm")


def test_multiple_choice_by_letter() -> None:
    """The same type of a vision task has answers in place of likelihoods."""
    columns: Columns = {
        "item": ["1", "2"],
        "prediction": ["B", "A."],
        "choices": [["x", "y"], ["x", "y"]],
        "gold": [1, 1],
    }
    assert judge("multiple_choice", columns).score == [1.0, 0.0]


def test_last_word() -> None:
    """Accuracy is by the greedy word; the perplexity of the words stands beside it."""
    scores = judge("last_word", {"logliks": [[-1.0], [-3.0]], "tokens": [[1], [2]], "greedy": [[True], [False]]})
    assert level(scores) == 0.5
    assert math.exp(level(scores, "nats_per_word")) == pytest.approx(math.exp(2.0))


def test_perplexity() -> None:
    """Nats over tokens, not the mean of the texts' own; over words and bytes where those are counted."""
    columns: Columns = {"logliks": [[-6.0], [-4.0]], "tokens": [[2], [3]]}
    assert judge("perplexity", columns) == Scores([6.0, 4.0], [2.0, 3.0], {})
    scores = judge("perplexity", columns | {"words": [1, 3], "bytes": [8, 12]})
    assert level(scores) == 2.0
    assert level(scores, "nats_per_word") == 2.5 and level(scores, "nats_per_byte") == 0.5


def test_exact_match() -> None:
    """One of the accepted answers, after normalization."""
    columns: Columns = {"prediction": ["The Cat.", "7"], "answers": [["a dog", "cat"], ["seven"]]}
    assert judge("exact_match", columns) == Scores([1.0, 0.0], [1.0, 1.0], {})


@pytest.mark.parametrize(
    ("answer", "plain"),
    [
        ("  The Red  car. ", "red car"),
        ("A", "a"),
        ("1,000.5", "1000.5"),
        ("1,000km, 1,2,3", "1000km 1 2 3"),
        ("-5", "-5"),
        ("−5", "-5"),
        ("１，０００円。", "1000円"),
        (".5", "0.5"),
        ("-.5", "-0.5"),
        ("$.50", "0.50"),
        ("Well...5", "well 5"),
        ("10:30!", "10:30"),
        ("yes, it is", "yes it is"),
        ("3.", "3"),
        ("Cafe\u0301 «Über»", "café über"),
        ("हिन्दी।", "हिन्दी"),
        ("x + 1 < 3", "x + 1 < 3"),
        ("?!", "?!"),
        ('"The" Dog, an (owner) of the "cat"', "the dog owner of cat"),
        ("N/A", "na"),
        ("A/B test", "ab test"),
        ("B.A.", "ba"),
        ("U.S.A. team", "usa team"),
        ("Vitamin A", "vitamin a"),
        ("a + b", "a + b"),
        ("COVID-19, 1990-1995", "covid 19 1990 1995"),
        ("1990–1995", "1990 1995"),
        ("–5 °C", "-5 c"),  # as word processors write a minus
        ("U.S.", "us"),
        ("J. K. Rowling", "jk rowling"),
        ("J.K. Rowling, 5 p.m.", "jk rowling 5 pm"),
        ("C#, item#4, #4", "c# item 4 4"),
        ("_yes_", "yes"),
        ("_the red bus_", "red bus"),  # in italics
        ("Don't", "dont"),
        ("John’s team's", "johns teams"),
        ("5'10", "5 10"),
        ("The -5", "-5"),
        ("❤️", "❤"),
    ],
)
def test_normalized_answers(answer: str, plain: str) -> None:
    """Case, articles and punctuation go; what belongs to a number, a letter or a formula stays, and what is alone."""
    assert normalize(answer) == plain


@pytest.mark.parametrize(
    ("said", "right"),
    [
        (r"2 + 2 = \boxed{3}, no: $\boxed{ 4 }$.", "4"),
        (r"\boxed{\text{Light blue}}", "light blue"),
        (r"So \boxed{60\,\mathrm{km}/h}", r"\boxed{60\,km/h}"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed 4", "boxed 4"),
        ("1\u202f000 km", "1,000 km"),
        ("1'000", "1000"),
        ("12,34,567", "1234567"),  # as India writes it
        ("\u0967\u0968", "12"),  # digits of Hindi
        ("\u0661\u066c\u0660\u0660\u0660\u066b\u0665", "1000.5"),  # of Arabic, with its marks
        ("**4**", "4."),
    ],
)
def test_an_answer_in_a_box_or_set_otherwise(said: str, right: str) -> None:
    """What reasoning models put their answer into, and how numbers are grouped, makes no difference."""
    assert exact_match(said, [right]) and not exact_match(said, ["3"])


@pytest.mark.parametrize(
    ("said", "right"),
    [("", "+"), ("-", "+"), ("C", "C++"), ("C", "C#"), ("का", "की"), ("😀", "😂"), ("❤️", "☀️"), ("", "?")],
)
def test_answers_that_are_all_marks_are_told_apart(said: str, right: str) -> None:
    """Of none of them nothing is left."""
    assert exact_match(said, [right]) == 0 and exact_match(right, [right]) == 1
