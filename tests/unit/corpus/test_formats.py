from typing import Any

import pytest

from lingu_ray.config import SourceConfig
from lingu_ray.corpus.formats import FORMATS, BadRecord, RawRow


def source(format: Any, **settings) -> SourceConfig:
    return SourceConfig(name="s", format=format, path="x", **settings)


def raw_rows(format: str, record: dict, **settings) -> list[RawRow]:
    return list(FORMATS[format](record, source(format, **settings)))


def conversation(format: str, record: dict, **settings) -> list[tuple[str, str]]:
    (raw_row,) = raw_rows(format, record, **settings)
    return [(m["role"], m["content"]) for m in raw_row.messages]


def test_messages_with_text_and_with_parts():
    """`messages` with strings and `images` beside, or with Hugging Face parts that carry the image."""
    record = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "See <image>?"},
            {"role": "assistant", "content": "Yes."},
        ],
        "images": ["a.png"],
    }
    (raw_row,) = raw_rows("messages", record)
    assert [m["content"] for m in raw_row.messages] == ["Be brief.", "See <image>?", "Yes."]
    assert raw_row.images == ["a.png"]
    parts = [{"type": "text", "text": "See "}, {"type": "image", "path": "b.png"}, {"type": "text", "text": "?"}]
    record = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "Yes."}]}
    (raw_row,) = raw_rows("messages", record)
    assert raw_row.messages[0]["content"] == "See <image>?"
    assert raw_row.images == ["b.png"]


def test_parts_with_images_beside():
    """Parts `{"type": "image"}` without a reference take their images from `images`, as hub datasets have them."""
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]
    record = {"messages": [{"role": "user", "content": parts}], "images": [{"bytes": b"x", "path": None}]}
    (raw_row,) = raw_rows("messages", record)
    assert raw_row.messages[0]["content"] == "<image>What?"
    assert raw_row.images == [{"bytes": b"x", "path": None}]


@pytest.mark.parametrize("format", ["cauldron", "finevision"])
def test_cauldron_and_finevision(format):
    """Several texts are one conversation of several turns, its images before the first question."""
    record = {
        "images": [{"bytes": b"1", "path": None}, {"bytes": b"2", "path": None}],
        "texts": [{"user": "A?", "assistant": "a", "source": "vqa"}, {"user": "B?", "assistant": "b", "source": "vqa"}],
    }
    assert conversation(format, record) == [
        ("user", "<image><image>A?"),
        ("assistant", "a"),
        ("user", "B?"),
        ("assistant", "b"),
    ]


def test_llava():
    """Speakers become roles, the line breaks around the placeholder go, `image` is one path or a list."""
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "That."}]
    assert conversation("llava", {"conversations": turns, "image": "a.jpg"}) == [
        ("user", "<image>What?"),
        ("assistant", "That."),
    ]
    turns = [{"from": "human", "value": "Is\n<image>\nlike\n<image>"}, {"from": "gpt", "value": "No."}]
    (raw_row,) = raw_rows("llava", {"conversations": turns, "image": ["a.jpg", "b.jpg"]})
    assert raw_row.messages[0]["content"] == "Is<image>like<image>"
    assert raw_row.images == ["a.jpg", "b.jpg"]


def test_prompt_completion():
    """With no image, one, or several."""
    record = {"prompt": "P?", "completion": "c"}
    assert conversation("prompt_completion", record) == [("user", "P?"), ("assistant", "c")]
    assert conversation("prompt_completion", record | {"image": "a.png"})[0] == ("user", "<image>P?")
    assert conversation("prompt_completion", record | {"images": ["a", "b"]})[0] == ("user", "<image><image>P?")


def test_instruction():
    """The input, if there is one, follows the instruction after a blank line."""
    record = {"instruction": "Add.", "input": "1, 2", "output": "3"}
    assert conversation("instruction", record) == [("user", "Add.\n\n1, 2"), ("assistant", "3")]
    assert conversation("instruction", record | {"input": ""})[0] == ("user", "Add.")


def test_text_is_cut_into_passages():
    """Each passage: prompt_words given, answer_words to say; white space stays; a rest with an answer is kept."""
    record = {"text": "a b\nc d e  f g h i"}
    passages = raw_rows("text", record, prompt_words=2, answer_words=2)
    said = [(d.messages[0]["content"], d.messages[1]["content"]) for d in passages]
    assert said == [("a b", "c d"), ("e  f", "g h")]
    passages = raw_rows("text", record, prompt_words=2, answer_words=4)
    assert [d.messages[1]["content"] for d in passages] == ["c d e  f", "i"]
    assert conversation("text", {"text": "a b c"}, prompt_words=2, prompt="Go on:")[0] == ("user", "Go on:\na b")


def test_text_too_short_for_a_passage():
    """A document without a word to answer is a bad record."""
    with pytest.raises(BadRecord) as error:
        raw_rows("text", {"text": "only three words"}, prompt_words=3)
    assert error.value.reason == "too_short"


def test_scienceqa():
    """Choices are lettered, the hint comes first, lecture and solution follow the answer, the image is optional."""
    record = {
        "question": "Which?",
        "choices": ["red", "blue"],
        "answer": 1,
        "hint": "Look up.",
        "lecture": "Light scatters.",
        "solution": "So blue.",
        "image": {"bytes": b"x", "path": None},
    }
    assert conversation("scienceqa", record) == [
        ("user", "<image>Context: Look up.\nQuestion: Which?\nChoices:\nA. red\nB. blue"),
        ("assistant", "The answer is B. blue\nLight scatters.\nSo blue."),
    ]
    bare = {"question": "Which?", "choices": ["red", "blue"], "answer": 0, "image": None, "hint": ""}
    assert conversation("scienceqa", bare)[1] == ("assistant", "The answer is A. red")
    with pytest.raises(BadRecord, match="index of the 2 choices"):
        raw_rows("scienceqa", record | {"answer": 2})


def test_image_folder():
    """The label fills `prompt` and `answer`, with defaults for both."""
    record = {"image": "x/green-apple/1.png", "label": "green apple"}
    assert conversation("image_folder", record) == [
        ("user", "<image>What is in the picture?"),
        ("assistant", "green apple"),
    ]
    said = conversation("image_folder", record, prompt="Name it.", answer="A {label}.")
    assert said == [("user", "<image>Name it."), ("assistant", "A green apple.")]


def test_webdataset():
    """A caption as txt or in json, or a record of another format in json; the image comes from the tar."""
    image = {"jpg": b"x"}
    assert conversation("webdataset", image | {"txt": b"A cat.\n"}) == [
        ("user", "<image>What is in the picture?"),
        ("assistant", "A cat."),
    ]
    assert conversation("webdataset", image | {"json": b'{"caption": "A dog."}'})[1] == ("assistant", "A dog.")
    said = (
        b'{"conversations": [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "!"}], "image": "1.jpg"}'
    )
    (raw_row,) = raw_rows("webdataset", image | {"json": said})
    assert raw_row.images == [b"x"]
    assert raw_row.messages[0]["content"] == "<image>?"


def test_template():
    """Format strings over a record's columns; `image` names the column of the image."""
    record = {"q": "Which?", "options": ["a", "b"], "a": "b", "pic": "1.png"}
    settings = {"prompt": "{q} Options: {options}", "answer": "{a}", "image": "pic"}
    assert conversation("template", record, **settings) == [
        ("user", "<image>Which? Options: ['a', 'b']"),
        ("assistant", "b"),
    ]


@pytest.mark.parametrize(
    ("format", "record", "reason"),
    [
        ("messages", {"text": "x"}, "missing_field"),
        ("messages", {"messages": "x"}, "wrong_type"),
        ("messages", {"messages": ["x"]}, "wrong_type"),
        ("messages", {"messages": [{"role": "user", "content": 5}]}, "wrong_type"),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "wrong_type"),
        ("cauldron", {"texts": [{"user": "x"}], "images": []}, "missing_field"),
        ("llava", {"conversations": [{"from": "robot", "value": "x"}]}, "bad_turns"),
        ("prompt_completion", {"prompt": "x", "completion": 3}, "wrong_type"),
        ("prompt_completion", {"prompt": "x"}, "missing_field"),
        ("instruction", {"instruction": None, "output": "x"}, "wrong_type"),
        ("webdataset", {"jpg": b"x"}, "missing_field"),
        ("webdataset", {"jpg": b"x", "json": b"{"}, "bad_json"),
        ("webdataset", {"jpg": b"x", "txt": b"\xff"}, "wrong_type"),
    ],
)
def test_records_of_another_shape_say_so(format, record, reason):
    """A record that does not fit its format is a bad record with its reason, never an exception that ends the build."""
    with pytest.raises(BadRecord) as error:
        raw_rows(format, record)
    assert error.value.reason == reason


def test_template_names_the_missing_column():
    """A format string over a column that is not there names it and those that are."""
    with pytest.raises(BadRecord, match=r"no column 'q'.*there are: question"):
        raw_rows("template", {"question": "x"}, prompt="{q}", answer="y")
