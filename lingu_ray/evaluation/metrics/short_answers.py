"""Judging short answers against those that are accepted: exact match, VQA score, ANLS, relaxed accuracy."""

from __future__ import annotations

import re
import unicodedata

from rapidfuzz.distance import Levenshtein

from lingu_ray.errors import UserError

LEAST_SIMILARITY = 0.5
"""ANLS below which an answer scores 0; 0.5 itself counts, as in the official evaluation."""
TOLERANCE = 0.05
"""Share of the right number by which one may be off, in relaxed accuracy."""
ENOUGH = 4
"""VQA score: answers to an item below which no answer can score 1."""

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_SMALL = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(number) for number, word in enumerate(_SMALL)} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
# Before a word and apart from it; not the A of `N/A`, `U.S.A. team` and `vitamin A`.
_ARTICLE = re.compile(r"(?<![\w./&+=-])(?:an?|the)\s+(?=[^\s.,:;)/&+=<>–—-]|[+<>-]\d)")
_BOXED, _SET = re.compile(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}"), re.compile(r"\\(?:text|math)\w*\{([^{}]*)\}")
_INITIALS = re.compile(r"\b([a-z]) (?=[a-z]\b)")  # U.S. and U. S. are US
AS_TYPED = str.maketrans(
    {chr(0xFF01 + place): chr(0x21 + place) for place in range(94)}
    | dict.fromkeys("\u2010\u2011\u2012\u2013\u2212", "-")
    | dict.fromkeys("\ufe0e\ufe0f", "")
    | {digit: str(unicodedata.decimal(chr(digit))) for digit in range(0x660, 0x10000) if chr(digit).isdecimal()}
    | {"\u066b": ".", "\u066c": ","}
)
"""ASCII for its full-width forms, of Chinese and Japanese text, for the typographic minus and the dashes that stand for
it, for the digits of Arabic, Hindi and other scripts and the marks within Arabic numbers; nothing for what says whether
a symbol is shown in color."""

# What the official table restores; a contraction is known with any one of its apostrophes left out.
_CONTRACTIONS = """
    'ow's'at 'twas ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't
    he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't
    needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd somebody'd've
    somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's
    there'd there'd've there're there's they'd they'd've they'll they're they've wasn't we'd've we've weren't what'll
    what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
    would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""
_RESTORED = {
    word[:place] + word[place + 1 :]: word
    for word in _CONTRACTIONS.split()
    for place, letter in enumerate(word)
    if letter == "'"
}


def exact_match(prediction: str, answers: list[str]) -> float:
    """1 if the normalized answer is one of those accepted, else 0.

    Of a solution in LaTeX what stands in its last box is the answer: `\\boxed{4}`, `\\boxed{\\text{blue}}`.
    """
    return float(normalize(_boxed(prediction)) in {normalize(_boxed(answer)) for answer in answers})


def _boxed(answer: str) -> str:
    found = _BOXED.findall(answer)
    return _SET.sub(r"\1", found[-1]) if found else answer


def normalize(answer: str) -> str:
    """Lower case; no articles before a word, no punctuation but what belongs to a number; it stays where it is alone.

    Marks that are parts of letters (vowel signs of Hindi, accents), and of mathematics (+, =, <), are no punctuation.
    """
    typed = unicodedata.normalize("NFC", answer.translate(AS_TYPED).lower())
    # 1,000 is 1000, with a thin space and an apostrophe too, and 1,00,000 is 100000
    text = re.sub(r"(?<=\d)[,'’\u00a0\u2009\u202f](?=(?:\d\d,)*\d{3}(?!\d))", "", typed)
    text = re.sub(r"(?<![\w.])\.(?=\d)", "0.", text)  # .5 is 0.5
    text = re.sub(r"(?<=[^\W\d_])['’](?=[^\W\d_])", "", text)  # don't is dont, but 5'10 no 510
    text = _ARTICLE.sub("", text.replace("_", " "))
    kept = r"(?<!\w)-\d|(?<=\d)[.:/]\d|(?<=[^\W\d_])#(?!\w)"  # -5, 2.5, 10:30, 1/2, C#
    text = re.sub(rf"(?!{kept})[^\w\s]", _without_punctuation, text)
    return _INITIALS.sub(r"\1", " ".join(text.split() or typed.split()))


def _without_punctuation(mark: re.Match[str]) -> str:
    category = unicodedata.category(mark[0])
    return mark[0] if category[0] == "M" or category == "Sm" else " "


def vqa_accuracy(prediction: str, answers: list[str]) -> float:
    """VQA score: an answer is right as far as people gave it too, after the official normalization.

    VQAv2 and TextVQA hold ten people's answers to a question. Each person in turn is left out: the answer scores a
    third for each of the others who gave it, at most 1; the score is the mean over whom to leave out.

    Raises:
        UserError: fewer than four answers, among which none can score 1.
    """
    if len(answers) < ENOUGH:
        raise UserError(
            f"vqa_accuracy needs the answers of several people (VQAv2 and TextVQA have ten), found {answers}; "
            "where one answer is right, set type exact_match"
        )
    said, total = normalize_vqa(prediction), len(answers)
    matches = sum(normalize_vqa(answer) == said for answer in answers)
    # A person who agrees leaves one match less among the others.
    return (matches * min(1.0, (matches - 1) / 3) + (total - matches) * min(1.0, matches / 3)) / total


def normalize_vqa(answer: str) -> str:
    """Lower case, digits for small numbers, contractions with their apostrophe; no articles, no punctuation."""
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    number = re.search(r"\d,+\d", text) is not None  # then every mark goes without leaving a space: 1,000 is 1000
    gone = [mark for mark in _MARKS if number or f"{mark} " in text or f" {mark}" in text]
    text = text.translate({ord(mark): "" if mark in gone else " " for mark in _MARKS})
    text = re.sub(r"\.(?!\d)", "", text)
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_RESTORED.get(word, word) for word in words if word not in _ARTICLES)


def anls(prediction: str, answers: list[str]) -> float:
    """Average normalized Levenshtein similarity, of DocVQA and InfoVQA: near misses of reading count in part.

    Similarity to the nearest answer, 1 − edits / length of the longer, without regard to case and spacing.
    """
    said = _lower(prediction)
    return max(Levenshtein.normalized_similarity(said, _lower(a), score_cutoff=LEAST_SIMILARITY) for a in answers)


def _lower(text: str) -> str:
    return " ".join(text.lower().split())


def relaxed_accuracy(prediction: str, answers: list[str]) -> float:
    """Relaxed accuracy, of ChartQA: 1 if one of the answers is met, else 0.

    A number may be off by 5% of the right one; other answers match without regard to case.
    """
    return float(any(_met(prediction.strip(), answer.strip()) for answer in answers))


def _met(prediction: str, answer: str) -> bool:
    said, right = _number(prediction), _number(answer)
    if prediction.lower() == answer.lower():  # `inf` and `nan` too, of which the distance is no number
        return True
    if said is None or not right:  # of 0 there is no share to be off by
        return False
    return abs(said - right) / abs(right) <= TOLERANCE


def _number(text: str) -> float | None:
    """The number that a text is; 5% is 0.05."""
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return None
