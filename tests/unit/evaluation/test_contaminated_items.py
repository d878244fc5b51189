"""Which evaluation items are found in training rows, and which are not."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image
from tiny import picture

from lingu_ray.atomic import write_json
from lingu_ray.config import Config, TaskConfig
from lingu_ray.corpus.images import decode_image
from lingu_ray.corpus.row import Row
from lingu_ray.corpus.store import Corpus
from lingu_ray.errors import UserError
from lingu_ray.evaluation.contamination import find
from lingu_ray.evaluation.contamination.find import look_for_items
from lingu_ray.evaluation.contamination.found import RULES, Found, read_found, write_found
from lingu_ray.evaluation.contamination.items import Marks, TaskMarks
from lingu_ray.evaluation.contamination.rows import look_in_rows
from lingu_ray.evaluation.tasks.load import load_task, load_tasks
from lingu_ray.runtime.run_folder.folder import RunFolder

FACT = "The river that flows past the old mill rises in the hills north of the town and ends in"
TEMPLATE = "Read the following passage with care and then answer the question below it in one short sentence or less"


def turn(question: str, answer: str, **answered: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer, **answered}]


def rows_of(conversations: list[list[dict[str, Any]]], images: list[bytes] | None = None) -> list[Row]:
    """Rows of one conversation each; each has all images."""
    return [Row("chat", place, messages, images or [], True) for place, messages in enumerate(conversations)]


def found(folder: Path, task: dict[str, Any], items: list[dict[str, Any]], rows: list[Row]) -> dict[str, int]:
    """The items that are found, each with the first row."""
    path = folder / "items.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    marks = TaskMarks(load_task(TaskConfig.model_validate({"name": "asked", "path": str(path)} | task)))
    return {item.name: seen.row for item, seen in marks.found(look_in_rows(rows, marks.marks))}


LAST_WORD = {"kind": "language", "type": "last_word"}
CHOICE = {"kind": "language", "type": "multiple_choice"}
ASKED = {"kind": "language", "type": "exact_match"}
PASSAGE = {"kind": "language", "type": "perplexity"}


@pytest.mark.parametrize(
    ("task", "item", "conversation", "is_found"),
    [
        (LAST_WORD, {"context": FACT, "continuation": "lakes"}, turn(f"{FACT} what?", "The sea."), True),
        (LAST_WORD, {"context": FACT, "continuation": "lakes"}, turn("Go on.", f"{FACT} lakes."), True),
        (LAST_WORD, {"context": FACT, "continuation": "lakes"}, turn("Go on.", FACT[20:50]), False),
        (PASSAGE, {"text": f"{FACT} lakes"}, turn("", f"We read: {FACT.upper()} lakes, they say."), True),
        (ASKED, {"question": "Two and two?", "answer": "Four"}, turn("two and two", "four!"), True),  # short: all of it
        (ASKED, {"question": "Two and two?", "answer": "Four"}, turn("Two and two?", "Five"), False),
        (ASKED, {"question": "Two and two?", "answer": ["4", "Four"]}, turn("Two and two?", "Four"), True),
        (ASKED, {"question": "Two and two?", "answer": "Four"}, turn("Two and two?", "Four, I think"), False),
        (CHOICE, {"query": "Grass is", "choices": ["red", "green"], "gold": 1}, turn("Grass is", "green"), True),
        (CHOICE, {"query": "Grass is", "choices": ["red", "green"], "gold": 1}, turn("Grass is", "red"), False),
        (CHOICE, {"context_options": ["Red", "Blue"], "continuation": "sky", "gold": 1}, turn("Blue", "sky"), True),
        (ASKED, {"question": "Grass?", "answer": "Green"}, [*turn("Hi", "Hello"), *turn("Grass?", "Green")], True),
        # an answer that is no target of the loss is not learned
        (ASKED, {"question": "Grass?", "answer": "Green"},
         [*turn("Grass?", "Green", supervised=False), *turn("Well?", "Yes")], False),
    ],
)  # fmt: skip
def test_texts(
    tmp_path: Path, task: dict[str, Any], item: dict[str, Any], conversation: list[dict[str, Any]], is_found: bool
) -> None:
    """Question and right answer: thirteen words in a row of them, or all of a shorter item."""
    conversations = [turn("Other", "words"), conversation]
    assert found(tmp_path, task, [item], rows_of(conversations)) == ({"1": 1} if is_found else {})


def test_words_of_a_template_are_no_quotation(tmp_path: Path) -> None:
    """What ten items and a tenth of all share does not count, however much of an item it is; the rest is compared."""
    items = [{"question": f"{TEMPLATE}: is {i} small?", "answer": "Yes"} for i in range(20)]
    items += [{"question": f"{FACT}: {what}?", "answer": "No"} for what in ("a sea", "a lake")]
    rows = rows_of([turn(f"{TEMPLATE}: are {i} many?", "Maybe") for i in range(30)] + [turn(FACT, "the sea")])
    assert found(tmp_path, ASKED, items, rows) == {"21": 30, "22": 30}
    repeated = [*rows, *rows_of([turn(f"{TEMPLATE}: is 7 small?", "Yes")])]
    assert found(tmp_path, ASKED, items, repeated) == {"8": 0, "21": 30, "22": 30}
    assert found(tmp_path, ASKED, items[:1], rows) == {"1": 0}  # of one item nothing tells what its template is


def test_a_quotation_in_a_long_text_is_not_enough(tmp_path: Path) -> None:
    """Less than a fifth of it, as the question that a rare template asks."""
    text = " ".join(f"word{i}" for i in range(150))
    for words, is_found in ((38, False), (42, True)):
        row = rows_of([turn("", " ".join(text.split()[60 : 60 + words]))])
        assert bool(found(tmp_path, PASSAGE, [{"text": text}], row)) == is_found


def test_pictures(tmp_path: Path) -> None:
    """The item's pictures in any row, whatever is asked about them there; its words, which many items share, are not
    looked for."""
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(picture(i))
    items = [{"question": "Which color?", "answer": "red", "image": f"{i}.png"} for i in range(2)]
    items.append({"question": "<image><image>Same?", "answer": "no", "image": ["2.png", "1.png"]})
    task = {"kind": "vision", "type": "exact_match"}
    asked = turn("<image>Which color?", "red")
    assert found(tmp_path, task, items, rows_of([asked], [picture(1)])) == {"2": 0, "3": 0}
    assert found(tmp_path, task, items, rows_of([asked], [picture(7)])) == {}


def test_pictures_that_were_encoded_again(tmp_path: Path) -> None:
    """A photograph is found without its metadata, upright, and in other formats without loss; not if any pixel differs,
    nor if it was turned."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.open(io.BytesIO(picture(1, (60, 40)))).save(tmp_path / "item.jpg", exif=exif)
    shown = decode_image((tmp_path / "item.jpg").read_bytes())
    assert shown.size == (40, 60)
    items = [{"question": "Which color?", "answer": "red", "image": "item.jpg"}]
    task = {"kind": "vision", "type": "exact_match"}

    def is_found(image: Image.Image, format: str, **options: Any) -> bool:
        encoded = io.BytesIO()
        image.save(encoded, format, **options)
        rows = rows_of([turn("<image>Which color?", "red")], [picture(7), encoded.getvalue()])
        return found(tmp_path, task, items, rows) == {"1": 0}

    assert is_found(shown, "PNG") and is_found(shown, "WEBP", lossless=True) and is_found(shown, "TIFF")
    assert is_found(shown.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)
    assert not is_found(shown.transpose(Image.Transpose.ROTATE_90), "PNG")
    assert not is_found(shown.resize((80, 120)), "PNG")
    shown.putpixel((0, 0), (1, 2, 3))
    assert not is_found(shown, "PNG")


def test_nothing_to_look_for() -> None:
    """Items without words or pictures are in no row."""
    assert look_in_rows(rows_of([turn("…", "!")]), Marks(frozenset(), np.empty(0, np.uint64))) == {}


def test_what_was_looked_for_is_told_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same items, corpus and rows are not looked through a second time (which Ray would have to do)."""
    items = tmp_path / "items.jsonl"
    items.write_text('{"question": "Two and two?", "answer": "Four"}\n', encoding="utf-8")
    source = {"name": "chat", "format": "messages", "path": str(tmp_path / "chat.jsonl"), "language_heavy": True}
    config = Config.model_validate(
        {
            "name": "mine",
            "student": {"path": "/vlm"},
            "teacher": {"path": "/lm"},
            "corpus": {"sources": [source]},
            "train": {"steps": 2, "rows_per_step": 4},
            "evaluation": {"tasks": [{"name": "sums", "path": str(items)} | ASKED]},
        }
    )
    (tmp_path / "manifest.json").write_text('{"rows": 100, "rows_per_shard": 10, "fingerprint": "abc", "sources": {}}')
    corpus, folder, [task] = Corpus(tmp_path), RunFolder(tmp_path), load_tasks(config.evaluation)
    write_found({"sums": Found(task.asked, 1, "abc", 8, 1, "item 1 in row 3, source chat", RULES)}, folder)
    look_for_items(config, [task], folder, corpus)
    assert "1 of 1 items of sums stand in rows that are trained on (item 1 in row 3, source chat)" in caplog.text
    assert read_found(folder).keys() == {"sums"}
    longer = config.model_copy(update={"train": config.train.model_copy(update={"steps": 3})})
    looked = []
    monkeypatch.setattr(find, "find_items", lambda corpus, rows, tasks: looked.append(rows) or {})
    look_for_items(longer, [task], folder, corpus)
    assert looked == [12]
    write_found({"sums": Found(task.asked, 1, "abc", 8, 1, "item 1 in row 3, source chat", RULES - 1)}, folder)
    look_for_items(config, [task], folder, corpus)
    assert looked == [12, 8]  # an earlier version looked otherwise
    write_json(folder.contamination, {"sums": {"found": 1}})
    with pytest.raises(UserError, match=r"contamination\.json is another file than was written there .*: remove it"):
        look_for_items(config, [task], folder, corpus)
