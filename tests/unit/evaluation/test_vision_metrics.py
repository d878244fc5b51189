"""Vision metrics agree with worked examples, with slow obvious versions, and with reference code where it is there.

`pip install --no-deps pycocoevalcap` brings the COCO evaluation's own code; without it one test skips.
"""

import math
import random
from collections import Counter

import numpy as np
import pytest

from lingu_ray.config import TASK_TYPES
from lingu_ray.errors import UserError
from lingu_ray.evaluation.metrics.captions import (
    caption_words,
    cider_of_words,
    judge_cider,
    rouge_l,
    rouge_l_of_words,
)
from lingu_ray.evaluation.metrics.choice import judge_mme, named_option, yes_or_no
from lingu_ray.evaluation.metrics.metric import Columns, Scores
from lingu_ray.evaluation.metrics.registry import METRICS
from lingu_ray.evaluation.metrics.short_answers import anls, normalize_vqa, relaxed_accuracy, vqa_accuracy

VOCABULARY = "a man dog on the red bus with two cats in front of is riding near"


def level(scores: Scores) -> float:
    """Σ score / Σ weight."""
    return sum(scores.score) / sum(scores.weight)


# What the official VQA evaluation makes of these.
NORMALIZED = {
    "The  Dog.": "dog",
    "two cats": "2 cats",
    "none": "0",
    "an apple, a pear": "apple pear",
    "coca-cola": "coca cola",
    "red-and - white": "redand white",  # a mark beside a space goes everywhere without leaving one
    "1,000 (approx)": "1000 approx",
    "12-05,30": "120530",  # a comma between digits: no mark leaves a space
    "3.50 p.m.": "3.50 pm",
    "dont know": "don't know",
    "couldnt've": "couldn't've",
    "couldn'tve": "couldn't've",
    "couldntve": "couldntve",
    "its": "its",
    "yes\n": "yes",
}


@pytest.mark.parametrize("answer", NORMALIZED)
def test_vqa_answers_are_normalized_officially(answer: str):
    """Case, articles, numbers, contractions, and the official rule of when punctuation becomes a space."""
    assert normalize_vqa(answer) == NORMALIZED[answer]


def test_vqa_accuracy_leaves_each_person_out_in_turn():
    """On random answers the closed form is the mean over the persons, as the definition says it."""
    generator = random.Random(0)
    for _ in range(500):
        answers = [generator.choice(("red", "Red.", "blue", "the blue")) for _ in range(generator.randint(4, 12))]
        said = [normalize_vqa(answer) for answer in answers]
        each = []
        for person in range(len(answers)):
            others = said[:person] + said[person + 1 :]
            each.append(min(1, others.count("red") / 3))
        assert vqa_accuracy("a red", answers) == pytest.approx(sum(each) / len(each), abs=1e-12)


def test_vqa_accuracy_of_known_counts():
    """Of ten people 1, 2, 3 and 4 agree: the known values 0.3, 0.6, 0.9 and 1."""
    for agree, expected in ((0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)):
        assert vqa_accuracy("yes", ["yes"] * agree + ["no"] * (10 - agree)) == pytest.approx(expected)


def test_vqa_accuracy_needs_several_people():
    """One right answer would always score 0: it is refused, and the type that fits is named."""
    with pytest.raises(UserError, match="set type exact_match"):
        vqa_accuracy("yes", ["yes"])


def slow_distance(a: str, b: str) -> int:
    """Levenshtein distance by its recursion."""
    if not a or not b:
        return len(a) + len(b)
    return min(slow_distance(a[1:], b) + 1, slow_distance(a, b[1:]) + 1, slow_distance(a[1:], b[1:]) + (a[0] != b[0]))


def test_anls_is_the_nearest_answers_similarity():
    """1 − edits / longer length, the best of the answers, nothing below a half: worked examples and the recursion."""
    assert anls("Hello  World", ["hello world"]) == 1
    assert anls("january", ["january 5", "5 january"]) == pytest.approx(7 / 9)
    assert anls("ab", ["abcd"]) == 0.5  # the half itself counts
    assert anls("ab", ["abcde"]) == 0
    generator = random.Random(0)
    for _ in range(200):
        prediction, answer = ("".join(generator.choices("abc", k=generator.randint(1, 5))) for _ in range(2))
        similarity = 1 - slow_distance(prediction, answer) / max(len(prediction), len(answer))
        assert anls(prediction, [answer]) == pytest.approx(similarity if similarity >= 0.5 else 0)


@pytest.mark.parametrize(
    ("prediction", "answer", "met"),
    [
        ("105", "100", True),
        ("105.1", "100", False),
        ("-95", "-100", True),
        ("5%", "0.05", True),
        ("5", "5%", False),  # 5 is not 0.05
        ("0", "0", True),
        ("0.01", "0", False),
        ("red", "Red", True),
        ("dark red", "red", False),
        ("1,000", "1000", False),  # no number as ChartQA reads them
        ("yes", "1", False),
        ("", "1", False),
        ("Infinity", "infinity", True),  # Python's words for numbers are words here
        ("nan", "NaN", True),
        ("nan", "5", False),
    ],
)
def test_relaxed_accuracy(prediction: str, answer: str, met: bool):
    """Numbers within 5 % of the right one, percentages as shares, all else exactly but for case."""
    assert relaxed_accuracy(prediction, [answer]) == met
    assert relaxed_accuracy(prediction, ["something else", answer]) == met


@pytest.mark.parametrize(
    ("answer", "option"),
    [
        ("B", 1),
        ("b", 1),
        ("(B).", 1),
        ("B. a dog", 1),
        ("B) a dog", 1),
        ("C: a bus", 2),
        ("a dog", 1),  # the text, and no letter A
        ("A dog.", 1),
        ("C a bus", 2),
        ("The answer is (C)", 2),
        ("The correct option is B because A is wrong", 1),
        ("It is not (A); it must be (B)", 1),
        ("b) a dog", 1),
        ("(b) a dog", 1),
        ("b a dog", 1),
        ("__B__", 1),
        (r"\boxed{B}", 1),
        (r"The answer: $\boxed{\text{(B) a dog}}$", 1),
        ("ANSWER: B", 1),
        ("It is (B), as panel (F) shows", 1),  # no option F
        ("the answer is b.", 1),
        ("Answer: a", 0),
        ("The answer is a small dog", None),
        ("It would be B.", 1),
        ("I'd say it's C", 2),
        ("It is a dog", 1),  # ends with the text
        ('The answer is "a dog".', 1),
        ("Answer: **a bus**", 2),
        ("It is not a dog", None),
        ("a cat or a dog", None),
        ("The picture shows a bird dog", None),
        ("Not A, but C is a bus", 2),
        ("So, B", 1),
        ("Hence B.", 1),
        ("The image shows two. Therefore, B.", 1),
        ("So B is correct.", 1),
        ("So B is wrong.", None),
        ("La risposta è B.", 1),
        ("1. B", 1),
        ("I'd go with option B", 1),
        ("It is 20 °C", None),
        ("It is 20 C", None),
        ("B. a dog\nB. a dog\nB. a dog", 1),  # said again until it was cut off
        ("Réponse : B", 1),
        ("答案：B。", 1),
        ("答案是B", 1),
        ("正解はBです。", 1),
        ("정답은 B입니다.", 1),
        ("Ｂ", 1),  # full-width
        ("答案：Ｂ。", 1),
        ("（Ｂ）", 1),
        ("**A dog.**", 1),  # set in bold
        ("“a dog”", 1),
        ("维生素C", None),
        ("The cat is A small one", None),
        ("A a cat", 0),
        ("A is right", 0),
        ("A man riding", None),  # an article
        ("Answer: A man riding", None),
        ("C'est un chat", None),  # parts of words
        ("D", None),  # the first letter without an option
        ("The answer is D.", None),
        ("The answer is A-frame", None),
        ("A/C unit", None),
        ("B&B", None),
        ("B - a dog", 1),
        ("The dog(s) (see e.g. Fig. 2)", None),
        ("A.M.", None),
        ("b.c. 50", None),
        ("A or B", None),  # several are none
        ("(A) or (B)", None),
        ("**A** and **B**", None),
        ("The answer is A or B.", None),
        ("A, B, C", None),
        ("A 或 B", None),
        ("A. a cat\nB. a dog\nC. a bus", None),
        ("A. a cat\n\nB. a dog\n\nThe answer is B.", 1),
        ("Either A or B; the answer is C.", 2),
        ("B, as A and C are cats", 1),
        ("B. a dog\nIt barks.", 1),
        ("E", None),  # no such option
        ("a bird", None),
        ("I do not know", None),
        ("", None),
    ],
)
def test_the_option_an_answer_names(answer: str, option: int | None):
    """The letter in its usual places, or an option's text; nothing else counts as a choice."""
    assert named_option(answer, ["a cat", "a dog", "a bus"]) == option


@pytest.mark.parametrize(("answer", "option"), [("", None), ("*", 1), ('"+"', 0), (".", None)])
def test_options_that_are_marks(answer: str, option: int | None):
    """Of arithmetic: a mark is named by itself, and by no empty answer."""
    assert named_option(answer, ["+", "*", "/"]) == option


@pytest.mark.parametrize(
    ("answer", "option"),
    [
        ("It has vitamin C.", 0),  # the text, not the letter
        ("It is 1,200", 2),
        ("It is red wine", 3),
        ("It is wine", 4),
        ("Red wine, since it is dark.", 3),
        ("Iron. The nail is made of it.", 1),
        ("Iron works, as one sees", None),
        ("iron, wine", None),
        ("Wine: it is red wine", None),
    ],
)
def test_the_option_whose_text_is_in_a_sentence(answer: str, option: int | None):
    """The longest text that the answer begins or ends with, before a letter that stands there; not two of them."""
    assert named_option(answer, ["vitamin C", "iron", "1,200", "red wine", "wine"]) == option


@pytest.mark.parametrize(("answer", "option"), [("W", 1), ("s.", 2), ("C", 2), ("Z", None)])
def test_options_that_are_letters_themselves(answer: str, option: int | None):
    """Of a compass: a letter that no option is listed by may be an option's own text."""
    assert named_option(answer, ["N", "W", "S"]) == option


# What Stanford's PTBTokenizer, less the punctuation that the COCO evaluation drops, makes of these.
TOKENIZED = {
    "A man riding a wave on top of a surfboard.": "a man riding a wave on top of a surfboard",
    "Two dogs -- one black -- are running...": "two dogs one black are running",
    'A sign that says "STOP", on St. Charles Ave.': "a sign that says stop on st. charles ave.",
    "A close-up of a cat's face; it's asleep.": "a close-up of a cat 's face it 's asleep",
    "There isn't one, and they cannot wait.": "there is n't one and they can not wait",
    "A 3-year-old boy's t-shirt at five o'clock": "a 3-year-old boy 's t-shirt at five o'clock",
    "They're gonna see 1,000 cats at 10:30 a.m.": "they 're gon na see 1,000 cats at 10:30 a.m.",
    "a sink,toilet and a black/white tub": "a sink toilet and a black/white tub",
    "a $5 bill, 50% off, #3 & more": "a $ 5 bill 50 % off # 3 & more",
    "“Curly” quotes don’t matter — at all": "curly quotes do n't matter at all",
    "the players' bats": "the players bats",
}


@pytest.mark.parametrize("caption", TOKENIZED)
def test_captions_are_cut_as_coco_cuts_them(caption: str):
    """Clitics apart, hyphens and numbers whole, no punctuation, lower case."""
    assert caption_words(caption) == TOKENIZED[caption].split()


def test_captions_without_spaces_agree_by_character() -> None:
    """A Chinese caption that is nearly its reference is, and one of another picture is not; Korean has its spaces."""
    said = ["一只猫坐在垫子上", "两只狗在公园里跑", "一辆红色的公共汽车"]
    right = [["一只小猫坐在垫子上", "猫坐在垫子上面"], ["两只狗在公园奔跑"], ["红色的公共汽车停在路边"]]
    columns = {"prediction": said, "answers": right}
    near, far = (judge_cider(one).score for one in (columns, columns | {"prediction": said[1:] + said[:1]}))
    assert min(near) > 5 and max(far) < 1
    assert rouge_l(said[0], right[0]) > 0.9 and caption_words("고양이가 앉아 있다") == ["고양이가", "앉아", "있다"]


def random_captions(seed: int, empty: bool = False) -> tuple[list[list[str]], list[list[list[str]]]]:
    """Captions and one to five references for each, of random words."""
    generator = random.Random(seed)
    items = generator.randint(2, 12)
    words = lambda least: generator.choices(VOCABULARY.split(), k=generator.randint(least, 12))  # noqa: E731
    captions = [words(0 if empty else 1) for _ in range(items)]
    return captions, [[words(1) for _ in range(generator.randint(1, 5))] for _ in range(items)]


def slow_cider(captions: list[list[str]], references: list[list[list[str]]]) -> list[float]:
    """CIDEr-D after its definition, on dense vectors over all n-grams of the corpus, in float64."""
    sentences = [*captions, *(words for of_item in references for words in of_item)]

    def grams(words: list[str], n: int) -> Counter:
        return Counter(zip(*(words[i:] for i in range(n)), strict=False))

    scores = np.zeros(len(captions))
    for n in (1, 2, 3, 4):
        known = sorted(set().union(*(grams(words, n) for words in sentences)))
        of_items = [set().union(*(grams(words, n) for words in of_item)) for of_item in references]
        frequency = [sum(gram in found for found in of_items) for gram in known]
        idf = np.log(len(captions)) - np.log(np.maximum(1, frequency))

        def vector(words: list[str], n: int = n, known: list = known, idf: np.ndarray = idf) -> np.ndarray:
            counted = grams(words, n)
            return idf * [counted[gram] for gram in known]

        for item, (caption, of_item) in enumerate(zip(captions, references, strict=True)):
            c = vector(caption)
            for reference in of_item:
                r = vector(reference)
                norms = np.linalg.norm(c) * np.linalg.norm(r)
                cosine = np.minimum(c, r) @ r / norms if norms else 0
                penalty = math.exp(-((len(caption) - len(reference)) ** 2) / (2 * 6.0**2))
                scores[item] += 10 * penalty * cosine / len(of_item) / 4
    return scores.tolist()


def test_cider_is_its_definition():
    """On random captions each item's score is that of dense vectors."""
    for seed in range(20):
        captions, references = random_captions(seed, empty=True)
        assert cider_of_words(captions, references) == pytest.approx(slow_cider(captions, references), abs=1e-12)


def test_captions_agree_with_the_coco_evaluation():
    """pycocoevalcap's scorers of CIDEr and ROUGE-L give the same on random captions, item by item."""
    cider_scorer = pytest.importorskip("pycocoevalcap.cider.cider_scorer")
    rouge = pytest.importorskip("pycocoevalcap.rouge.rouge").Rouge()
    for seed in range(20):
        captions, references = random_captions(seed)
        scorer = cider_scorer.CiderScorer()
        for caption, of_item in zip(captions, references, strict=True):
            texts = [" ".join(words) for words in of_item]
            scorer += (" ".join(caption), texts)
            expected = rouge.calc_score([" ".join(caption)], texts)
            assert rouge_l_of_words(caption, of_item) == pytest.approx(expected, abs=1e-12)
        mean, each = scorer.compute_score()
        assert cider_of_words(captions, references) == pytest.approx(each.tolist(), abs=1e-12)
        assert np.mean(cider_of_words(captions, references)) == pytest.approx(mean, abs=1e-12)


def test_a_reference_said_again_scores_10():
    """A caption that is its only reference has cosine 1 in all orders; one that shares nothing has 0."""
    references = [["a man rides a red bus"], ["two cats sleep in front of it"]]
    columns: Columns = {"prediction": ["A man rides a red bus.", "Green apples"], "answers": references}
    scores = judge_cider(columns)
    assert scores.score == pytest.approx([10, 0])
    assert scores.extra["rouge_l"] == pytest.approx([1, 0])
    assert level(scores) == pytest.approx(5)


def test_rouge_l_takes_the_best_precision_and_recall():
    """Worked: `a red bus` has 2 of its 3 words in order in `a big bus`, and all in the 6 words of another."""
    precision, recall = 3 / 3, 2 / 3
    expected = (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)
    assert rouge_l("a red bus", ["a big bus", "a man near a red bus"]) == pytest.approx(expected)
    assert rouge_l("", ["a big bus"]) == 0


@pytest.mark.parametrize(
    ("answer", "said"),
    [("Yes", "yes"), ("yes, it is", "yes"), ("No.", "no"), ("n", "no"), ("y", "yes"), ("The cat", None), ("", None)],
)
def test_yes_or_no(answer: str, said: str | None):
    """The answer's beginning decides."""
    assert yes_or_no(answer) == said


def mme_columns(seed: int) -> Columns:
    """Two questions an image, of three categories of different sizes; the questions of an image stand apart."""
    generator = random.Random(seed)
    images = [(c, f"{i}.png") for c, n in (("count", 3), ("OCR", 5), ("code_reasoning", 2)) for i in range(n)]
    questions = [image for image in images for _ in range(2)]
    generator.shuffle(questions)
    return {
        "category": [category for category, _ in questions],
        "group": [group for _, group in questions],
        "gold": [generator.choice(("yes", "no")) for _ in questions],
        "prediction": [generator.choice(("Yes", "No.", "a cat")) for _ in questions],
    }


def test_mme_is_the_sum_over_categories():
    """On random answers the level is Σ over categories of the images' mean of accuracy and accuracy+, in per cent."""
    for seed in range(20):
        columns = mme_columns(seed)
        total = {"perception": 0.0, "cognition": 0.0}
        for category in set(columns["category"]):
            rights: dict[str, list[bool]] = {}
            for row, of_row in enumerate(columns["category"]):
                if of_row == category:
                    right = columns["prediction"][row].lower().startswith(columns["gold"][row])
                    rights.setdefault(columns["group"][row], []).append(right)
            points = [100 * sum(right) / 2 + 100 * (sum(right) == 2) for right in rights.values()]
            total["cognition" if category == "code_reasoning" else "perception"] += sum(points) / len(points)
        scores = judge_mme(columns)
        assert level(scores) == pytest.approx(sum(total.values()))
        assert {name: sum(part) / len(part) for name, part in scores.extra.items()} == pytest.approx(total)


def test_mme_has_an_entry_an_image():
    """The two questions of an image are one unit of the bootstrap; all right is 200 a category."""
    columns = mme_columns(0)
    scores = judge_mme(columns | {"prediction": columns["gold"]})
    assert len(scores.score) == len(scores.weight) == 10
    assert level(scores) == pytest.approx(3 * 200)
    first = list(dict.fromkeys(zip(columns["category"], columns["group"], strict=True)))
    sizes = Counter(category for category, _ in first)
    assert scores.score == pytest.approx([200 * 10 / sizes[category] for category, _ in first])


def test_every_vision_type_has_a_metric_that_right_answers_top():
    """Each type's judge takes the columns that the tasks have; right answers reach the top, wrong ones less."""
    references: Columns = {
        "answers": [["a red bus"] * 4, ["two cats sleep there"] * 4],
        "choices": [["a", "b"], ["c", "d"]],
        "category": ["count", "OCR"],
        "group": ["0", "1"],
    }
    tops = {"cider": 10 * 3 / 4 / 2 + 10 / 2, "mme": 400}  # a caption of three words has no n-gram of four
    for name in TASK_TYPES["vision"]:
        gold = {"multiple_choice": [0, 1], "mme": ["yes", "no"]}.get(name, [None, None])
        right = {"multiple_choice": ["A", "B"], "mme": ["Yes", "No"]}.get(name, ["A red bus", "two cats sleep there"])
        columns = references | {"gold": gold, "item": ["1", "2"]}
        good, bad = (METRICS[name].judge(columns | {"prediction": said}) for said in (right, right[::-1]))
        assert level(good) == pytest.approx(tops.get(name, 1)), name
        assert level(bad) < level(good) and METRICS[name].higher_is_better
        assert METRICS[name].share == (name not in tops)
