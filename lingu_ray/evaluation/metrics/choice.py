"""Judging by the option that an answer names: a letter of multiple choice, or yes and no, of MME."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from string import ascii_lowercase, ascii_uppercase

from lingu_ray.evaluation.metrics.metric import Columns, Scores
from lingu_ray.evaluation.metrics.short_answers import AS_TYPED

# A letter, unless it is the article or the pronoun of a sentence, or part of a word: `A man riding`, `I see`, `C'est`,
# `A-frame`, `A/C`.
_BARE = r"(?![AI] (?!(?:is|was|as|and|or|because|since|for|due|in|which)\b)\w)[A-Z]\b(?![-'’/&]\w)"
_LETTER = f"({_BARE})"
_APART = r"(?<![\w'’.&/+°-])(?<!\d )"  # not of B&B, U.S.A, 20 °C and 20 C
# Several at once, which chooses none: `A or B`, `(A), (B)`, and options that are listed again line by line.
_SEVERAL = re.compile(
    rf"(?<![\w'’])[A-Z](?:\W{{0,3}}?(?:[,/&、或和]|\b(?:or|and)\b)\W*{_BARE})+\W{{0,3}}"
    r"|(?:^[^\w\n]*([A-Z])[).:].*\n*)(?:^[^\w\n]*(?!\1)[A-Z][).:].*\n*)+",
    re.MULTILINE,
)
# From the clearest to the least certain way to name an option; the last of several in one answer counts.
_FORMS = tuple(
    re.compile(form)
    for form in (
        rf"\\boxed\{{(?:\\\w+\{{)?\W*{_LETTER}",  # \boxed{\text{B}}
        r"^\W*([A-Z](?=[).:,\n](?!\w\.))|[a-z](?=[).:]\s))",  # B. a red bus; b) a red bus; not D.C.
        rf"\b(?i:answer|option|choice)(?i: is)?:?\W+{_LETTER}",  # the answer is (B)
        r"\b(?i:answer|option|choice)(?i: is)?:?\W+([a-z])\W*$",  # the answer is b
        r"(?<!\w)\(([A-Za-z])\)",  # it must be (B); not bus(es)
        rf"^\W*{_LETTER}(?!\.\w)",  # B a red bus
    )
)
_TEXTS = (  # an option's text with others around it: it is a red bus; a red bus, since ...
    r"(?<!\bnot )(?<!n't )(?<!\bor )(?<!\band )(?<=[\s:\"“*是为]){}$",
    r"^{}(?=[.,;:] )",
)
# Those of which an option's text is clearer: `it has vitamin C`
_UNCERTAIN = tuple(
    re.compile(form)
    for form in (
        rf"(?:[:：]\W*|[是为选选择擇项項]|{_APART}){_LETTER}\W*$",  # therefore, B; 答案是B
        rf"{_APART}{_LETTER}\W+(?:is|seems)\b(?! (?:not|wrong|incorrect|false)\b)",  # so B is correct
        r"(?<![A-Za-z])([A-Z])(?:です|입니다)",  # 正解はBです
    )
)

COGNITION = frozenset(("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"))
"""MME's categories of cognition; the others are perception."""


def judge_letters(columns: Columns) -> Scores:
    """Accuracy: 1 where the option that the answer names is `gold`."""
    named = [named_option(p, c) for p, c in zip(columns["prediction"], columns["choices"], strict=True)]
    score = [float(option == gold) for option, gold in zip(named, columns["gold"], strict=True)]
    return Scores(score, [1.0] * len(score), {})


def named_option(answer: str, choices: list[str]) -> int | None:
    """Index of the option whose letter or text the answer is, whose letter it names, or with whose text it begins or
    ends; None if it names none.

    Letters that stand side by side as alternatives, or as a list, choose none, as in VLMEvalKit.
    """
    answer = answer.translate(AS_TYPED)
    letter = re.fullmatch(r"[\W_]*([A-Za-z])[\W_]*", answer)
    if letter and (index := _index(letter[1].upper(), choices)) is not None:
        return index
    texts, plain = [_plain(choice) for choice in choices], _plain(answer)
    for named in (texts, [f"{letter} {text}" for letter, text in zip(ascii_lowercase, texts, strict=False)]):
        if plain in named:
            return named.index(plain)
    chosen = _SEVERAL.sub(" ", answer)
    if (index := _by_letter(_FORMS, chosen, choices)) is not None:
        return index
    by_text = {max(said, key=len) for form in _TEXTS if (said := _said(form, texts, _plain(chosen)))}
    return texts.index(by_text.pop()) if len(by_text) == 1 else _by_letter(_UNCERTAIN, chosen, choices)


def _said(form: str, texts: list[str], answer: str) -> list[str]:
    return [text for text in texts if re.search(form.format(re.escape(text)), answer)]


def _by_letter(forms: Sequence[re.Pattern[str]], answer: str, choices: list[str]) -> int | None:
    """The option of the last letter in the clearest form that the answer has."""
    found = next((letters for form in forms if (letters := form.findall(answer))), [])
    indices = [index for one in found if (index := _index(one.upper(), choices)) is not None]
    return indices[-1] if indices else None


def _index(letter: str, choices: list[str]) -> int | None:
    index = ascii_uppercase.index(letter)
    return index if index < len(choices) else None


def _plain(text: str) -> str:
    typed = " ".join(text.translate(AS_TYPED).lower().split())
    return typed.lstrip('*_`"“”').rstrip('*_`"“”.') or typed  # an option may be a mark alone


def judge_mme(columns: Columns) -> Scores:
    """The MME score: an image has two yes-or-no questions, and scores 100 for the share of them that is right and 100
    more when all are; a category is the mean over its images, and the score the sum over categories: at most 2000 for
    perception, 800 for cognition.

    An entry an image, in the order of its first question: the two questions of an image are drawn together.

    An image's score is scaled by images / images of its category, so that the mean over images is the sum over
    categories; the categories are strata of the bootstrap, or a resample could have more of an easy one than there is.
    `extra`: `perception` and `cognition`, the two parts of that sum.
    """
    right: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for prediction, gold, category, group in zip(
        columns["prediction"], columns["gold"], columns["category"], columns["group"], strict=True
    ):
        right[category, group].append(yes_or_no(prediction) == yes_or_no(gold))
    images = Counter(category for category, _ in right)
    score = [
        100 * (sum(of_image) / len(of_image) + all(of_image)) * len(right) / images[category]
        for (category, _), of_image in right.items()
    ]
    cognition = [s if category in COGNITION else 0.0 for s, (category, _) in zip(score, right, strict=True)]
    perception = [s - c for s, c in zip(score, cognition, strict=True)]
    extra = {"perception": perception, "cognition": cognition}
    categories = [category for category, _ in right]
    return Scores(score, [1.0] * len(score), extra, strata=categories, most=200.0 * len(images))


def yes_or_no(answer: str) -> str | None:
    """Which of the two an answer begins with; None if neither."""
    head = answer.lower().replace(".", "").strip()[:4]
    if "yes" in head or head == "y":
        return "yes"
    return "no" if "no" in head or head == "n" else None
