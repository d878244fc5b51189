"""Every vision task of the catalog, on a row with the columns that its dataset's card shows."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Image, load_from_disk
from tiny import picture

from lingu_ray.config import EvaluationConfig, TaskConfig
from lingu_ray.config.task_catalog import catalog
from lingu_ray.evaluation.metrics.registry import METRICS
from lingu_ray.evaluation.tasks.load import load_task
from lingu_ray.evaluation.tasks.task import Asked

IMAGE = {"bytes": picture(), "path": None}
SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
PEOPLE = ["red", "red", "blue", "red", "green", "red", "red", "dark red", "red", ""]
SCIENCE = {"task": "closed choice", "grade": "grade3", "subject": "natural science", "lecture": "", "solution": ""}
MMMU_IMAGES = {f"image_{number}": None for number in range(2, 8)}
SEED_CHOICES = {"choice_a": "One", "choice_b": "Two", "choice_c": "Three", "choice_d": "Four"}

# name: the columns of its row, the prompt, what answers are judged by, and a right answer
CASES: dict[str, tuple[dict[str, Any], str, dict[str, Any], str]] = {
    "vqav2": (
        {
            "question_type": "what color is the",
            "multiple_choice_answer": "red",
            "answers": [
                {"answer": answer, "answer_confidence": "yes", "answer_id": number}
                for number, answer in enumerate(PEOPLE, start=1)
            ],
            "image_id": 262148,
            "answer_type": "other",
            "question_id": 262148000,
            "question": "What color is the bus?",
            "image": IMAGE,
        },
        "What color is the bus?" + SHORT,
        {"answers": PEOPLE},
        "Red.",
    ),
    "textvqa": (
        {
            "image_id": "003a8ae2ef43b901",
            "question_id": 34602,
            "question": "what is the brand of this Camera?",
            "question_tokens": ["what", "is"],
            "image": IMAGE,
            "answers": PEOPLE,
            "ocr_tokens": ["DAKOTA"],
        },
        "What is the brand of this camera?" + SHORT,
        {"answers": PEOPLE},
        "red",
    ),
    "docvqa": (
        {
            "questionId": "49153",
            "question": "What is the ‘actual’ value per 1000?",
            "question_types": ["figure/diagram"],
            "image": IMAGE,
            "docId": 14465,
            "answers": ["0.28", "0.28 g"],
            "data_split": "val",
        },
        "What is the ‘actual’ value per 1000?" + SHORT,
        {"answers": ["0.28", "0.28 g"]},
        "0.28",
    ),
    "infovqa": (
        {
            "questionId": "98313",
            "question": "Which platform is used most?",
            "answers": ["LinkedIn"],
            "answer_type": ["single span"],
            "image": IMAGE,
            "operation/reasoning": ["none"],
            "ocr": "[]",
        },
        "Which platform is used most?" + SHORT,
        {"answers": ["LinkedIn"]},
        "linkedin",
    ),
    "chartqa": (
        {"type": "human_test", "question": "How many bars are there?", "answer": "14", "image": IMAGE},
        "How many bars are there?\nAnswer the question with a single word.",
        {"answers": ["14"]},
        "14.5",
    ),
    "ai2d": (
        {"question": "What eats grass?", "options": ["fox", "rabbit", "owl"], "answer": "1", "image": IMAGE},
        "What eats grass?\nA. fox\nB. rabbit\nC. owl" + LETTER,
        {"choices": ["fox", "rabbit", "owl"], "gold": 1},
        "B",
    ),
    "scienceqa_img": (
        SCIENCE
        | {
            "image": IMAGE,
            "question": "Which is a gas?",
            "choices": ["ice", "steam"],
            "answer": 1,
            "hint": "Think of heat.",
        },
        "Context: Think of heat.\nWhich is a gas?\nA. ice\nB. steam" + LETTER,
        {"choices": ["ice", "steam"], "gold": 1},
        "B.",
    ),
    "mmmu": (
        MMMU_IMAGES
        | {
            "id": "validation_Physics_1",
            "question": "Here: <image 1> Which slope has <image 1>?",
            "options": str([r"$\frac{1}{2}$", "it's 3", 'a "rise", 4']),
            "image_1": IMAGE,
            "answer": "B",
            "question_type": "multiple-choice",
        },
        'Here: <image> Which slope has <image 1>?\nA. $\\frac{1}{2}$\nB. it\'s 3\nC. a "rise", 4' + LETTER,
        {"choices": [r"$\frac{1}{2}$", "it's 3", 'a "rise", 4'], "gold": 1},
        "B",
    ),
    "mmstar": (
        {
            "index": 0,
            "question": "What is it?\nOptions: A: A bus, B: A cat, C: A dog, D: A man",
            "image": IMAGE,
            "answer": "A",
            "category": "coarse perception",
            "l2_category": "image scene and topic",
            "meta_info": {"source": "MMBench", "split": "val", "image_path": "images/0.jpg"},
        },
        "What is it?\nOptions: A: A bus, B: A cat, C: A dog, D: A man" + LETTER[:-1],
        {"choices": ["A", "B", "C", "D"], "gold": 0},
        "A: A bus",
    ),
    "seedbench_image": (
        SEED_CHOICES
        | {
            "answer": "A",
            "data_id": ["1454426_2591111986"],
            "data_type": "image",
            "question": "How many towels are in the image?",
            "question_id": "101669",
            "question_type_id": 5,
            "image": [IMAGE],
        },
        "How many towels are in the image?\nA. One\nB. Two\nC. Three\nD. Four" + LETTER,
        {"choices": ["One", "Two", "Three", "Four"], "gold": 0},
        "A",
    ),
    "coco_captions": (
        {
            "question_id": "000000179765.jpg",
            "image": IMAGE,
            "question": "Please carefully observe the image and come up with a caption for the image.",
            "answer": ["A black Honda motorcycle.", "A Honda parked in a garage."],
            "id": 38,
        },
        "Provide a one-sentence caption for the provided image.",
        {"answers": ["A black Honda motorcycle.", "A Honda parked in a garage."]},
        "A black Honda motorcycle",
    ),
    "mme": (
        {
            "question_id": "code_reasoning/0020.png",
            "image": IMAGE,
            "question": "Is a python code shown in the picture? Please answer yes or no.",
            "answer": "Yes",
            "category": "code_reasoning",
        },
        "Is a python code shown in the picture?" + SHORT,
        {"gold": "yes", "category": "code_reasoning", "group": "code_reasoning/0020.png"},
        "Yes",
    ),
    "pope": (
        {
            "id": "0",
            "question_id": "1",
            "question": "Is there a snowboard in the image?",
            "answer": "yes",
            "image_source": "COCO_val2014_000000310196",
            "image": IMAGE,
            "category": "adversarial",
        },
        "Is there a snowboard in the image?" + SHORT,
        {"answers": ["yes"]},
        "Yes.",
    ),
}
LEFT_OUT = {  # rows that `where` does not take
    "mmmu": [{"image_2": IMAGE}, {"question_type": "open", "options": "[]", "answer": "3"}],
    "seedbench_image": [{"data_type": "video", "image": [IMAGE, IMAGE]}],
}
TOPS = {"vqa_accuracy": 1, "mme": 200, "cider": 0}  # of one item no n-gram is rare


def load(folder: Path, name: str, rows: list[dict[str, Any]], **changes: Any) -> tuple[TaskConfig, list[Asked]]:
    """The task of the catalog on rows in a parquet file, as `evaluation.tasks` names it."""
    Dataset.from_list(rows).to_parquet(str(folder / "rows.parquet"))
    place = {"path": str(folder / "rows.parquet"), "subset": None, "split": None}
    (config,) = EvaluationConfig.model_validate({"tasks": [{"name": name, **place, **changes}]}).tasks
    items = load_task(config).items
    assert all(isinstance(item, Asked) for item in items)
    return config, [item for item in items if isinstance(item, Asked)]


@pytest.mark.parametrize("name", CASES)
def test_rows_become_the_questions_of_lmms_eval(name: str, tmp_path: Path):
    """Prompt, image and references are those that lmms-eval makes of the row; a right answer is judged right."""
    row, prompt, reference, answer = CASES[name]
    others = [row | other for other in LEFT_OUT.get(name, [])]
    config, (item, *_) = load(tmp_path, name, [row, *others, *([row] if name == "mme" else [])])  # two an image
    assert item.prompt == prompt
    assert [read() for read in item.images] == [IMAGE["bytes"]]
    assert item.reference == reference
    scores = METRICS[config.type].judge(
        {"item": [item.name], "prediction": [answer], **{key: [value] for key, value in item.reference.items()}}
    )
    assert scores.score == pytest.approx([TOPS.get(config.type, 1)])


def test_every_vision_task_is_tried_here():
    """No entry of the catalog's vision tasks goes without a case above."""
    assert {name for name, entry in catalog().items() if entry["kind"] == "vision"} == CASES.keys()


def test_a_question_without_a_hint_has_no_context(tmp_path: Path):
    """ScienceQA's context line stands where there is a hint alone."""
    row, prompt, *_ = CASES["scienceqa_img"]
    _, (item,) = load(tmp_path, "scienceqa_img", [row | {"hint": ""}])
    assert item.prompt == prompt.removeprefix("Context: Think of heat.\n")


def test_gqa_as_the_catalog_says_to_join_it(tmp_path: Path):
    """The comment's recipe on two questions about one image: each has the image, and is asked as POPE's are."""
    images = Dataset.from_list([{"id": "n1", "image": IMAGE}]).cast_column("image", Image(decode=False))
    number = {name: number for number, name in enumerate(images["id"])}
    questions = Dataset.from_list(
        [
            {"imageId": "n1", "question": "Is it red?", "answer": "no"},
            {"imageId": "n1", "question": "Who rides?", "answer": "man"},
        ]
    )
    questions.map(lambda row: {"image": images[number[row["imageId"]]]["image"]}).save_to_disk(tmp_path / "gqa")
    assert load_from_disk(str(tmp_path / "gqa"))[1]["question"] == "Who rides?"
    gqa = {"name": "gqa", "like": "pope", "path": str(tmp_path / "gqa"), "split": None}
    (config,) = EvaluationConfig.model_validate({"tasks": [gqa]}).tasks
    first, second = (item for item in load_task(config).items if isinstance(item, Asked))
    assert (first.prompt, second.prompt) == ("Is it red?" + SHORT, "Who rides?" + SHORT)
    assert second.images[0]() == IMAGE["bytes"]
    assert second.reference == {"answers": ["man"]}
