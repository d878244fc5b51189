import base64
import datetime
import json
import re
import subprocess
import sys
from decimal import Decimal
from typing import Any, cast

import pandas as pd
import pytest
from pydantic import ValidationError
from tiny import picture

from lingu_ray.config import SourceConfig
from lingu_ray.config.corpus import READ_BY
from lingu_ray.corpus.check import check_messages
from lingu_ray.corpus.formats import FORMATS
from lingu_ray.corpus.image_folder import ImageFolder
from lingu_ray.corpus.load_image import load_image
from lingu_ray.corpus.readers import FileSplit
from lingu_ray.corpus.record import BadRecord, RawRow, is_empty
from lingu_ray.corpus.record_keys import RECORD_RULES, SUPERVISED_FLAGS, TURN_RULES, VERDICTS
from lingu_ray.corpus.turns import SYSTEM_PROMPTS
from lingu_ray.literals import parsed


def source(format: Any, **settings) -> SourceConfig:
    return SourceConfig(name="s", format=format, path="x", **settings)


def raw_rows(format: str, record: dict, **settings) -> list[RawRow]:
    return list(FORMATS[format](record, source(format, **settings)))


def conversation(format: str, record: dict, **settings) -> list[tuple[str, str]]:
    (raw_row,) = raw_rows(format, record, **settings)
    return [(m["role"], m["content"]) for m in raw_row.messages]


def reason_of(format: str, record: dict, **settings) -> str:
    with pytest.raises(BadRecord) as error:
        raw_rows(format, record, **settings)
    return error.value.reason


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
    """Speakers become roles, line breaks between a text and placeholders go, `image` is one path or a list."""
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "That."}]
    assert conversation("llava", {"conversations": turns, "image": "a.jpg"}) == [
        ("user", "<image>What?"),
        ("assistant", "That."),
    ]
    for value, expected in (
        ("<image>\n<image>\nLike\nthat?", "<image><image>Like\nthat?"),
        ("Alike?\n<image>\n<image>\n", "Alike?<image><image>"),
        ("1: <image>\n2: <image>\nAlike?", "1: <image>\n2: <image>\nAlike?"),  # as InternVL numbers them
        ("Is\n<image>\nlike\n<image>", "Is\n<image>\nlike<image>"),
    ):
        turns = [{"from": "human", "value": value}, {"from": "gpt", "value": "No."}]
        (raw_row,) = raw_rows("llava", {"conversations": turns, "image": ["a.jpg", "b.jpg"]})
        assert raw_row.messages[0]["content"] == expected
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


def test_a_prompt_is_a_format_string_in_all_formats_that_read_it():
    """Over the columns of its record; the passage that is cut is none, for it would be asked with its answer."""
    record = {"text": "a b c", "title": "T"}
    assert conversation("text", record, prompt_words=2, prompt="Of {title}:")[0] == ("user", "Of T:\na b")
    with pytest.raises(BadRecord, match=r"no column 'text' for 'Go on: \{text\}'; there are: title"):
        raw_rows("text", record, prompt_words=2, prompt="Go on: {text}")
    sample = {"jpg": b"x", "json": b'{"caption": "A dog.", "place": "Rome"}'}
    assert conversation("webdataset", sample, prompt="In {place}?")[0] == ("user", "<image>In Rome?")
    with pytest.raises(BadRecord, match="no column 'city'"):
        raw_rows("webdataset", sample, prompt="In {city}?")


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("我们在 GPU 上训练。现在开始", [("我们在", "GPU 上"), ("训练。", "现在")]),
        ("吾輩は猫である", [("吾輩は", "猫で")]),
        ("𠮷野家でビーフ", [("𠮷野家", "でビ")]),
        ("ที่นี่มีน้ำดี", [("ที่นี่มี", "น้ำดี")]),
        ("ខ្ញុំទៅរៀន", [("ខ្ញុំទៅរៀ", "ន")]),
        ("한국어 문장은 띄어 써요 네.", [("한국어 문장은 띄어", "써요 네.")]),
        ("اللغة العربية تكتب من اليمين.", [("اللغة العربية تكتب", "من اليمين.")]),
    ],
)
def test_text_without_white_space_is_cut_too(written, said):
    """A character is a word, with its marks, where a script has no white space between words."""
    passages = raw_rows("text", {"text": written}, prompt_words=3, answer_words=2)
    assert [(d.messages[0]["content"], d.messages[1]["content"]) for d in passages] == said


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
    for answer in ("B", "1"):  # as MMLU, and tables, have it
        assert conversation("scienceqa", bare | {"answer": answer})[1] == ("assistant", "The answer is B. blue")
    for wrong in (2, "C", "2", "blue", "b"):
        assert reason_of("scienceqa", bare | {"answer": wrong}) == "wrong_type"
    assert (
        reason_of("scienceqa", bare | {"choices": ["B", "A"], "answer": "A"}) == "wrong_type"
    )  # a choice, or a letter
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


def test_texts_of_a_sample_are_columns_of_its_record():
    """By their names, as a question with its answer; of captions, which numbers name, two are one or a reject."""
    asked = {"jpg": b"x", "question.txt": b"Color?\n", "answer.txt": b"Red.\n", "ocr.txt": b"STOP"}
    assert conversation("webdataset", asked) == [("user", "<image>Color?"), ("assistant", "Red.")]
    assert conversation("webdataset", {"jpg": b"x", "0.txt": b"A cat.", "1.txt": b"A cat."})[1][1] == "A cat."
    for other in ({"1.txt": b"A dog."}, {"caption.txt": b"A dog."}, {"json": b'{"caption": "A dog."}'}):
        with pytest.raises(BadRecord, match="'caption' of txt and that of json, or of a further member, differ"):
            raw_rows("webdataset", {"jpg": b"x", "txt": b"A cat."} | other)
    assert reason_of("webdataset", {"jpg": b"x", "txt": b"Red.", "question.txt": b"Color?"}) == "missing_field"


def test_named_json_of_a_sample_is_a_column_of_its_record():
    """As its turns, or details that nothing reads; a caption with an answer beside it may be the question of that."""
    turns = json.dumps(AS_LLAVA).encode()
    said = conversation("webdataset", {"jpg": b"x", "conversations.json": turns, "txt": b"A cat.", "detail.json": b"7"})
    assert said == [("user", "<image>A?"), ("assistant", "a")]
    assert conversation("webdataset", {"jpg": b"x", "txt": b"A cat.", "detail.json": b'{"a": 1}'})[1][1] == "A cat."
    other = {"json": {"conversations": AS_LLAVA}, "conversations.json": AS_LLAVA * 2}
    assert reason_of("webdataset", {"jpg": b"x"} | other) == "bad_turns"
    for name, answer in (("answers.json", b'["a cat"]'), ("answer.txt", b"a cat"), ("json", b'{"answer": "a cat"}')):
        with pytest.raises(BadRecord, match="beside a caption: call a question 'question'"):
            raw_rows("webdataset", {"jpg": b"x", "txt": b"What is it?", name: answer})


def test_template():
    """Format strings over a record's columns; `image` names the column of the image."""
    record = {"q": "Which?", "options": ["a", "b"], "a": "b", "pic": "1.png", "video": "of no interest"}
    settings = {"prompt": "{q} Options: {options[0]}, {options[1]}", "answer": "{a}", "image": "pic"}
    assert conversation("template", record, **settings) == [
        ("user", "<image>Which? Options: a, b"),
        ("assistant", "b"),
    ]


def test_an_entry_of_a_column_is_one_of_the_list_that_its_text_is():
    """As A-OKVQA and tables have lists; a letter of the text would be learned. Of other text it is a letter."""
    record = {"q": "Color?", "answers": "['red', 'dark red']", "object": '{"name": ["cup"]}', "letter": "B) cup"}
    assert conversation("template", record, prompt="{q}", answer="{answers[1]}")[1] == ("assistant", "dark red")
    assert conversation("template", record, prompt="{object[name][0]}?", answer="{letter[0]}")[1] == ("assistant", "B")
    with pytest.raises(BadRecord, match=r"\{answers\[0\]\}: 'answers' is no list or object that can be read"):
        raw_rows("template", record | {"answers": "['red' 'dark red']"}, prompt="{q}", answer="{answers[0]}")


@pytest.mark.parametrize("column", ["['red', 'dark red']", '["red"]', """['red' "isn't"\n 'x']"""])
def test_a_list_of_texts_that_stands_as_text_is_not_printed(column):
    """As A-OKVQA's `direct_answers`, or numpy's print; other lists may be what is asked for, such as an interval."""
    with pytest.raises(BadRecord, match=r"text of a list, .*: take an entry, as \{answers\[0\]\}, or .*\{answers!s\}"):
        raw_rows("template", {"a": column}, prompt="?", answer="{a}")
    assert conversation("template", {"a": column}, prompt="?", answer="{a!s}")[1] == ("assistant", column)
    assert conversation("template", {"a": "[0, 1]"}, prompt="?", answer="{a}")[1] == ("assistant", "[0, 1]")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("word", "word"),
        (7, "7"),
        (3.0, "3.0"),
        (True, "True"),
        (Decimal("3.10"), "3.10"),
        (datetime.date(2026, 1, 31), "2026-01-31"),
        *[(value, "missing_value") for value in (None, float("nan"), float("inf"), Decimal("NaN"), "nan", "<NA>")],
        ("<nooutput>", "missing_value"),
        *[(value, "wrong_type") for value in (["red", "blue"], {"a": 1}, b"bytes", [], len)],
    ],
)
def test_what_a_format_prints_is_text(value, text):
    """Numbers, truth values and dates are printed; null, NaN, lists, objects and bytes never are, in any format."""
    filled = [
        ("template", {"q": value, "a": "x"}, {"prompt": "{q}", "answer": "x"}),
        ("template", {"q": "x", "a": value}, {"prompt": "x", "answer": "{a}"}),
        ("image_folder", {"image": "x.png", "label": value}, {"answer": "{label!s}"}),
        ("scienceqa", {"question": "?", "choices": ["x", value], "answer": 1}, {}),
    ]
    if not is_empty(value):  # which says that there is none
        filled += [
            ("instruction", {"instruction": "?", "input": value, "output": "x"}, {}),
            ("scienceqa", {"question": "?", "choices": ["x"], "answer": 0, "hint": value}, {}),
            ("scienceqa", {"question": "?", "choices": ["x"], "answer": 0, "lecture": value}, {}),
        ]
    for format, record, settings in filled:
        if text in ("missing_value", "wrong_type"):
            assert reason_of(format, record, **settings) == text, (format, settings)
        else:
            assert text in json.dumps(conversation(format, record, **settings)), (format, settings)


def test_columns_are_formatted_as_the_pattern_says():
    """A format specification works as in Python, on the column's own type."""
    assert conversation("template", {"n": 3.0}, prompt="{n:.0f}", answer="{n:>5}")[0] == ("user", "3")


@pytest.mark.parametrize(
    ("settings", "column"),
    [
        ({"prompt": "question", "answer": "answer"}, "question"),
        ({"prompt": "{question}", "answer": "answer"}, "answer"),
        ({"prompt": "{{question}}", "answer": "{{answer}}"}, "question"),
        ({"prompt": "Q: {{ question }}", "answer": "{answer}", "image": "scan"}, "question"),
        ({"prompt": "What?", "answer": "scan", "image": "scan"}, "scan"),
        ({"prompt": "{question} In \\boxed{{answer}}.", "answer": "{answer}"}, None),
        ({"prompt": "answer", "answer": "{answer}", "image": "scan"}, None),
        ({"prompt": "Say {{it}}.", "answer": "It."}, None),
    ],
)
def test_a_pattern_that_names_a_column_and_fills_in_nothing(settings, column):
    """A column without braces, or in those of a task's templates, would be the same text for all rows."""
    record = {"question": "1 + 1?", "answer": "2", "scan": "1.png"}
    if column is None:
        conversation("template", record, **settings)
    else:
        with pytest.raises(BadRecord, match=rf"is the same text for all rows: a column is written \{{{column}\}}"):
            raw_rows("template", record, **settings)


PICTURE = {"bytes": b"x", "path": None}


@pytest.mark.parametrize(
    ("parts", "images"),
    [
        ([{"type": "image", "image": "1.png"}, {"type": "text", "text": "?"}], ["1.png"]),
        ([{"type": "image_url", "image_url": "http://x/1.png"}, "?"], ["http://x/1.png"]),
        ([{"type": "image_url", "image_url": {"url": "data:,x"}}, {"text": "?"}], [{"url": "data:,x"}]),
        (
            [{"type": "input_image", "image_url": "file:///1.png"}, {"type": "input_text", "text": "?"}],
            ["file:///1.png"],
        ),
        ([{"type": "image", "base64": "iVBO"}, {"type": "text", "text": "?"}], ["iVBO"]),
        (
            [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBO"}}, "?"],
            ["iVBO"],
        ),
        (
            [
                {"type": "image", "text": None, "image": PICTURE, "index": None},
                {"type": "text", "text": "?", "image": {"bytes": None, "path": None}, "index": None},
            ],
            [PICTURE],
        ),
        ([{"image": "1.png", "text": None}, {"image": None, "text": "?"}], ["1.png"]),
        ([{"type": "image_url", "value": "1.png"}, {"type": "text", "value": "?"}], ["1.png"]),  # of LLaMA-Factory
        ({"type": ["image", "text"], "path": ["1.png", None], "text": [None, "?"]}, ["1.png"]),
    ],
)
def test_parts_in_every_spelling(parts, images):
    """Parts of the files of two model APIs, of `datasets` (nulls, lists of a struct), and without a type."""
    record = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "Yes."}]}
    (raw_row,) = raw_rows("messages", record)
    assert raw_row.messages[0]["content"] == "<image>?"
    assert raw_row.images == images


NAN = float("nan")
TURNS = [("user", "A?"), ("assistant", "a")]
AS_ROLES = [{"role": role, "content": text} for role, text in TURNS]
AS_LLAVA = [{"from": "human", "value": "A?"}, {"from": "gpt", "value": "a"}]


@pytest.mark.parametrize(
    ("format", "record"),
    [
        *[("messages", {name: AS_ROLES}) for name in ("messages", "conversations", "conversation", "dialogue")],
        ("messages", {"messages": None, "conversations": AS_LLAVA}),
        ("messages", {"messages": json.dumps(AS_ROLES)}),
        ("messages", {"messages": {"role": ["user", "assistant"], "content": ["A?", "a"]}}),
        ("messages", {"conversation": [{"human": "A?", "assistant": "a"}]}),
        ("messages", {"messages": [{"role": " User", "content": "A?"}, {"role": "Assistant", "content": "a"}]}),
        ("llava", {"conversations": AS_ROLES}),
        ("llava", {"conversations": {"from": ["human", "chatgpt"], "value": ["A?", "a"], "weight": None}}),
        ("llava", {"conversations": [{"from": "gpt", "value": "Hello!"}, *AS_LLAVA]}),
        ("llava", {"conversations": [*AS_LLAVA, {"from": "human", "value": "B?"}]}),
        ("llava", {"conversations": [*AS_LLAVA, {"from": "human", "value": "<image>B?"}], "image": "1.png"}),
        ("cauldron", {"texts": {"user": ["A?"], "assistant": ["a"], "source": ["vqa"]}, "images": [None]}),
        ("prompt_completion", {"prompt": AS_ROLES[:1], "completion": AS_ROLES[1:]}),
        ("prompt_completion", {"prompt": json.dumps(AS_ROLES[:1]), "completion": json.dumps(AS_LLAVA[1:])}),
        ("messages", {"messages": [AS_ROLES[0], AS_ROLES[1] | {"content": '[{"type": "text", "text": "a"}]'}]}),
        ("cauldron", {"texts": [{"user": "A?", "assistant": "a", "system": None, "image": ""}]}),
        ("prompt_completion", {"prompt": "A?", "response": "a", "completion": None}),
        ("prompt_completion", {"query": "A?", "response": "a", "history": []}),
        ("prompt_completion", {"question": "A?", "answer": "a", "context": ""}),
        ("prompt_completion", {"question": "A?", "response": "a", "system_prompt": "", "answer": None}),
        ("instruction", {"instruction": "A?", "context": "", "response": "a"}),
        ("instruction", {"instruction": "", "input": "A?", "output": "a"}),
        ("instruction", {"instruction": "A?", "input": None, "output": "a", "system": "", "history": None}),
        ("instruction", {"instruction": "A?", "input": NAN, "output": "a", "system": NAN, "history": NAN}),
        ("instruction", {"instruction": "A?", "input": "nan", "output": "a", "system": "<NA>", "history": "nan"}),
        ("instruction", {"instruction": "A?", "input": "<noinput>", "output": "a"}),
        ("llava", {"conversations": AS_LLAVA, "image": NAN, "tools": NAN, "weight": NAN, "video": NAN}),
        ("llava", {"conversations": AS_LLAVA, "image": "nan", "tools": "nan", "weight": "nan", "video": "NaT"}),
        ("messages", {"messages": [{"role": "system", "content": ""}, *AS_ROLES]}),
        ("messages", {"messages": "[]", "conversations": str(AS_LLAVA)}),
        ("messages", {"messages": str(AS_ROLES), "conversations": "[]"}),
        ("messages", {"messages": [{"role": "system", "content": None}, *AS_ROLES]}),
        ("llava", {"conversations": [{"from": "system", "value": " "}, *AS_LLAVA], "system": ""}),
        ("webdataset", {"json": {"messages": AS_ROLES}, "__key__": "1", "jpg": None}),
        *[
            ("prompt_completion", {"prompt": "A?", "completion": "a", "images": none})
            for none in ([None], [], "[]", "")
        ],
        ("prompt_completion", {"prompt": "A?", "completion": "a", "image": {"bytes": None, "path": None}}),
        ("prompt_completion", {"prompt": None, "question": "A?", "completion": NAN, "answer": "a"}),
        ("cauldron", {"texts": [{"user": "A?", "assistant": "a", "role": None, "from": ""}]}),
        ("messages", {"conversation": [{"system": "", "input": "A?", "output": "a"}]}),
        ("messages", {"messages": AS_ROLES, "tools": "[]", "label": True, "weight": 1.0, "video": None, "id": 7}),
        (
            "messages",
            {"messages": AS_ROLES, "functions": "null", "kto_tag": "True", "weight": "1.0", "mask": "mask.png"},
        ),
    ],
)
def test_one_conversation_in_every_spelling(format, record):
    """Whatever the field has for the same conversation of one turn without an image is read as that."""
    (raw_row,) = raw_rows(format, record)
    assert [(m["role"], m["content"]) for m in raw_row.messages] == TURNS
    assert raw_row.images == []


@pytest.mark.parametrize(
    ("format", "record", "said"),
    [
        ("messages", {"messages": AS_ROLES, "system": "S"}, [("system", "S"), *TURNS]),
        ("messages", {"messages": [{"role": "developer", "content": "S"}, *AS_ROLES]}, [("system", "S"), *TURNS]),
        (
            "messages",
            {"messages": [{"role": "system", "content": ""}, *AS_ROLES], "system": "S"},
            [("system", "S"), *TURNS],
        ),
        (
            "messages",
            {"messages": [{"role": "system", "content": "S"}, *AS_ROLES], "system": "S", "image": "1.png"},
            [("system", "S"), ("user", "<image>A?"), TURNS[1]],
        ),
        ("llava", {"conversations": AS_LLAVA, "system": "S"}, [("system", "S"), *TURNS]),
        ("instruction", {"instruction": "A?", "output": "a", "system": "S"}, [("system", "S"), *TURNS]),
        *[
            ("prompt_completion", {"question": "A?", "response": "a", name: "S"}, [("system", "S"), *TURNS])
            for name in SYSTEM_PROMPTS
        ],
        (
            "instruction",
            {"instruction": "B?", "input": 7, "output": "b", "history": [["A?", "a"]]},
            [*TURNS, ("user", "B?\n\n7"), ("assistant", "b")],
        ),
        ("prompt_completion", {"question": "A?", "solution": "a", "answer": None}, TURNS),
        (
            "prompt_completion",
            {"query": "B", "response": "b", "history": AS_ROLES},
            [*TURNS, ("user", "B"), ("assistant", "b")],
        ),
        (
            "scienceqa",
            {"question": "B?", "choices": ["b"], "answer": 0, "history": [["A?", "a"]]},
            [*TURNS, ("user", "Question: B?\nChoices:\nA. b"), ("assistant", "The answer is A. b")],
        ),
        (
            "webdataset",
            {"jpg": b"x", "json": {"caption": "b", "history": [["<image>A?", "a"]]}},
            [("user", "<image>A?"), TURNS[1], ("user", "What is in the picture?"), ("assistant", "b")],
        ),
        (
            "messages",
            {"messages": [{"role": "user", "content": "A?", "images": ["1"]}, AS_ROLES[1]]},
            [("user", "<image>A?"), TURNS[1]],
        ),
        (
            "messages",
            {"messages": [{"role": "user", "content": None}, AS_ROLES[1]], "images": '["1"]'},
            [("user", "<image>"), TURNS[1]],
        ),
    ],
)
def test_what_belongs_to_a_conversation_is_in_it(format, record, said):
    """System prompts and earlier turns beside the conversation, developer messages, and images of single messages."""
    assert conversation(format, record) == said


JSON_TEXTS = (
    '[{"from": "Rome"}, {"to": "Paris"}]',
    '[{"from": "Rome", "to": "Paris"}]',
    '[{"type": "cat"}]',
    "[1, 2]",
    "[]",
    "{}",
    '[{"role":',
    "[" * 9999,
)
PYTHON_TEXTS = (
    "[{'from': 'Rome'}, {'to': 'Paris'}]",
    "[{'type': 'cat'}]",
    "['a', None]",
    "[{'role': 'admin', 'name': 'x'}]",
    "[{'role':",
    "{x}",
    "['a' 'b']",
)


@pytest.mark.parametrize("text", JSON_TEXTS + PYTHON_TEXTS)
def test_lists_that_are_no_turns_stay_text(text):
    """A prompt or an answer may be JSON or Python: only a list of turns, or of parts, is read as one."""
    expected = [("user", text), ("assistant", text)]
    assert conversation("prompt_completion", {"prompt": text, "completion": text}) == expected
    assert conversation("cauldron", {"texts": [{"user": text, "assistant": text}]}) == expected


SAID = [{"role": "user", "content": "<image>It's?"}, {"role": "assistant", "content": 'A "b"\\n.'}]
IN_PARTS = [{"type": "image"}, {"type": "text", "text": "It's?"}]


@pytest.mark.parametrize(
    ("format", "record"),
    [
        ("messages", {"messages": SAID, "images": ["a, [1].png"]}),
        ("messages", {"messages": [{**SAID[0], "content": IN_PARTS}, SAID[1]], "images": ["a.png"]}),
        ("cauldron", {"texts": [{"user": "It's?", "assistant": "A"}], "images": [{"bytes": b"\x89'", "path": None}]}),
        ("prompt_completion", {"prompt": SAID[:1], "completion": SAID[1:], "image": ["a.png"]}),
    ],
    ids=str,
)
def test_a_table_of_pandas_holds_lists_as_python_prints_them(format, record, tmp_path):
    """The columns that pandas writes into CSV mean the same as the lists they were."""
    pd.DataFrame([record]).to_csv(tmp_path / "a.csv", index=False)
    (of_table,) = FileSplit("csv", str(tmp_path / "a.csv")).records()
    assert all(isinstance(value, str) for value in of_table[1].values())
    assert raw_rows(format, of_table[1]) == raw_rows(format, record)


@pytest.mark.parametrize("text", ["['a' 'b']", "{'a': 1, 'a': 2}", "['\\d']", "[1,2,]", "[nan]", "[" * 9999, "{1, 2}"])
def test_what_python_would_not_print_is_not_read(text):
    """What numpy prints would become another text, a key that is given twice would be lost, a set is no list."""
    assert parsed(text) == text


def test_nothing_is_printed_of_escapes_in_the_data():
    """Python 3.12 and later warn of them, which `-W always` has older ones do, too."""
    code, text = "import sys, lingu_ray.literals as read; print(read.parsed(sys.argv[1]))", r"['\d']"
    command = [sys.executable, "-W", "always", "-c", code, text]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"{text}\n", "")


def test_a_question_and_answer_with_images_of_its_own():
    """Images of `{"user", "assistant"}` belong to its question, however they are given, and its system prompt to it."""
    picture = {"type": "image", "image": "1"}
    for user, images in (
        ("A?", {"image": "1"}),
        ("<image>A?", {"images": ["1"]}),
        ("<image>A?", {}),
        ([picture, {"type": "text", "text": "A?"}], {}),
        (json.dumps([picture, {"type": "text", "text": "A?"}]), {}),
    ):
        turns = [{"user": user, "assistant": "a", "system": "S"} | images, {"user": "B?", "assistant": "b"}]
        record = {"texts": turns} | ({} if images or user != "<image>A?" else {"images": ["1"]})
        (raw_row,) = raw_rows("cauldron", record)
        said = [(m["role"], m["content"]) for m in raw_row.messages]
        assert said == [("system", "S"), ("user", "<image>A?"), TURNS[1], ("user", "B?"), ("assistant", "b")]
        assert raw_row.images == ["1"]


@pytest.mark.parametrize("answer", [3, True, ["red", "dark red"], ["red"], {"value": "red", "aliases": ["a"]}])
def test_an_answer_that_is_no_text_says_how_it_can_be_one(answer):
    """As TallyQA, BoolQ, COCO's captions and TriviaQA have it: the way out is a template, which can name a part."""
    match = re.escape("'answer' is neither text nor turns: ") + ".*" + re.escape("`format: template`")
    with pytest.raises(BadRecord, match=f"{match}.*{re.escape('{answer[0]}')}") as error:
        raw_rows("prompt_completion", {"question": "A?", "answer": answer})
    assert error.value.reason == "wrong_type"


@pytest.mark.parametrize("pattern", ["{a:d}", "{a.b}", "{}", "{a!z}"])
def test_a_pattern_that_does_not_fit_its_column_is_told(pattern):
    """A number's format for a text, a part of what has none, a place without a name: with the pattern."""
    with pytest.raises(BadRecord, match=re.escape(f"{pattern!r} does not fit the record: ")) as error:
        raw_rows("template", {"a": "x", "b": "y"}, prompt=pattern, answer="{b}")
    assert error.value.reason == "wrong_type"


def test_a_turn_in_two_spellings_says_one_thing():
    """Roles and texts of both are the same, or the record is bad; another `from` or `value` is metadata."""
    answer = {"role": "assistant", "content": "a"}
    for more in ({"from": "human", "value": "A?"}, {"from": "Alice", "value": 0.5}, {"from": None, "value": ""}):
        assert raw_rows("messages", {"messages": [{"role": "user", "content": "A?"} | more, answer]})
    for more, both in (({"from": "gpt"}, "'role' and 'from'"), ({"value": "B?"}, "'content' and 'value'")):
        with pytest.raises(BadRecord, match=f"{both} of a turn differ, and nothing says which is meant"):
            raw_rows("messages", {"messages": [{"role": "user", "content": "A?"} | more, answer]})
    dialogue = {"dialogue": ["not", "turns"], "conversation": "id 7"}
    assert raw_rows("messages", {"messages": [{"role": "user", "content": "A?"}, answer]} | dialogue)


@pytest.mark.parametrize(
    ("format", "record", "both"),
    [
        ("instruction", {"instruction": "A?", "input": "x", "context": "y", "output": "a"}, "'input' and 'context'"),
        ("instruction", {"instruction": "A?", "output": "a", "response": "b"}, "'output' and 'response'"),
        ("prompt_completion", {"prompt": "A?", "query": "B?", "completion": "a"}, "'prompt' and 'query'"),
        ("prompt_completion", {"prompt": "A?", "completion": "a", "response": "b"}, "'completion' and 'response'"),
        ("prompt_completion", {"question": "A?", "answer": "4", "solution": "It is 4."}, "'answer' and 'solution'"),
        ("prompt_completion", {"question": "A?", "response": "It is 4.", "solution": "4"}, "'response' and 'solution'"),
        ("messages", {"messages": AS_ROLES, "system": "S", "system_message": "T"}, "'system' and 'system_message'"),
        ("cauldron", {"texts": [{"user": "A?", "human": "B?", "assistant": "a"}]}, "'user' and 'human'"),
        ("messages", {"messages": AS_ROLES, "conversations": AS_ROLES[1:]}, "'messages' and 'conversations'"),
        ("llava", {"conversations": AS_ROLES, "messages": AS_ROLES[:1]}, "'conversations' and 'messages'"),
    ],
)
def test_two_names_of_one_thing_that_differ(format, record, both):
    """Nothing is taken for the other in silence: the error names both, and the way out. Equal ones are one."""
    with pytest.raises(BadRecord, match=f"{both} differ, and nothing says which is meant: .*format: template"):
        raw_rows(format, record)
    first, second = both.replace("'", "").split(" and ")
    holder = record["texts"][0] if format == "cauldron" else record
    holder[second] = holder[first]
    assert raw_rows(format, record)


@pytest.mark.parametrize(
    ("images", "is_one"),
    [
        ({"images": ["a/1.png"], "image_path": "1.png"}, True),
        ({"image": {"bytes": b"x", "path": None}, "image_path": "1.png"}, True),  # metadata of what is there
        ({"image": "1.png", "image_url": "https://host.org/AbC"}, True),  # the copy that was fetched
        ({"image": "1.png", "image_path": None, "image_urls": [], "img": ""}, True),
        ({"images": ["1.png", "2.png"], "image_paths": '["x/1.png", "x/2.png"]'}, True),
        ({"images": "[]", "image": "1.png"}, True),  # as pandas writes an empty list into a table
        ({"image": "1.png", "image_path": "2.png"}, False),
        ({"image": {"bytes": b"x"}, "img": {"bytes": b"y"}}, False),
        ({"image": {"bytes": b"x", "path": None}, "img": {"bytes": b"x", "path": "1.png"}}, True),
        ({"image": "1.png", "image_paths": ["1.png", "2.png"]}, False),
        ({"images": ["1.png"], "image_urls": ["https://host.org/1", "https://host.org/2"]}, False),
    ],
)
def test_images_under_two_names(images, is_one):
    """They are one where they may be; others are not dropped for the first name's."""
    record = {"prompt": "What?", "completion": "A cat.", **images}
    if is_one:
        assert len(raw_rows("prompt_completion", record)[0].images) == len(parsed(images.get("images")) or ["one"])
    else:
        assert reason_of("prompt_completion", record) == "image_count"


@pytest.mark.parametrize(
    ("part", "beside", "is_one"),
    [
        ("file:///data/1.png", ["1.png"], True),
        ("data/1.png", ["1.png"], True),
        ({"url": "data:image/png;base64,AAAA"}, [{"bytes": b"x", "path": "1.png"}], True),
        ("data:image/png;base64,AAAA/BBBB", ["1.png"], True),
        (base64.b64encode(picture()).decode(), ["1.png"], True),
        ("1.png", [{"bytes": b"x", "path": None}], True),
        ("1.png", ["2.png"], False),
        ({"bytes": b"x", "path": None}, [{"bytes": b"y", "path": None}], False),
        ("1.png", ["1.png", "2.png"], False),
    ],
)
def test_images_in_the_parts_and_beside_them(part, beside, is_one):
    """Those of the parts are taken where both may be the same ones; others are not dropped for them."""
    record = with_parts({"type": "image", "image": part}, {"type": "text", "text": "What?"}, images=beside)
    if is_one:
        assert raw_rows("messages", record)[0].images == [part]
    else:
        assert reason_of("messages", record) == "image_count"


class Asked:
    """Settings of a source that remember which of them were read."""

    def __init__(self, settings: SourceConfig) -> None:
        self._settings = settings
        self.names = set()

    def __getattr__(self, name: str) -> Any:
        self.names.add(name)
        return getattr(self._settings, name)


READ_RECORDS = {
    "messages": {"messages": AS_ROLES},
    "cauldron": {"texts": [{"user": "A?", "assistant": "a"}]},
    "finevision": {"texts": [{"user": "A?", "assistant": "a"}]},
    "llava": {"conversations": AS_ROLES},
    "prompt_completion": {"prompt": "A?", "completion": "a"},
    "instruction": {"instruction": "A?", "output": "a"},
    "text": {"text": "a b c d e f", "label": "x"},
    "scienceqa": {"question": "A?", "choices": ["a", "b"], "answer": 0},
    "image_folder": {"image": "cat/1.png", "label": "cat"},
    "webdataset": {"jpg": b"x", "txt": b"a cat", "json": b'{"label": "x"}'},
    "template": {"label": "cat", "image": "1.png"},
}
OTHER_THAN_DEFAULT = {"prompt": "{label}?", "answer": "{label}", "image": "image", "prompt_words": 2, "answer_words": 3}


@pytest.mark.parametrize("format", list(FORMATS))
def test_settings_that_a_format_does_not_read_are_refused(format):
    """Formats read what `READ_BY` says, and any other setting of theirs is an error that names it and the formats."""
    read = {name: value for name, value in OTHER_THAN_DEFAULT.items() if format in READ_BY[name]}
    asked = Asked(source(format, **read))
    assert list(FORMATS[format](READ_RECORDS[format], cast(SourceConfig, asked)))
    assert asked.names == read.keys() and READ_BY.keys() == OTHER_THAN_DEFAULT.keys()
    for name in OTHER_THAN_DEFAULT.keys() - read.keys():
        with pytest.raises(ValidationError, match=f"source s: `{name}` is read by format .*, not by '{format}': leave"):
            source(format, **{**read, name: OTHER_THAN_DEFAULT[name]})


def test_system_prompts_that_cannot_stand_where_they_are():
    """One in a later turn, and one beside another: nothing is left out in silence."""
    first, later = ({"user": "A?", "assistant": "a"}, {"user": "B?", "assistant": "b", "system": "S"})
    (raw_row,) = raw_rows("cauldron", {"texts": [first, later]})
    with pytest.raises(BadRecord, match="user and assistant must take turns"):
        check_messages(raw_row.messages)
    assert reason_of("cauldron", {"texts": [later], "system": "another"}) == "bad_turns"


def test_images_by_their_index():
    """A part's `index` names one of the record's images, whatever their order; what is none of them is refused."""

    def record(*indices: Any) -> dict:
        parts = [{"type": "image", "index": index} for index in indices]
        return {"images": ["red", "blue"], "messages": [{"role": "user", "content": parts}, AS_ROLES[1]]}

    for indices, images in (
        ((1, 0), ["blue", "red"]),
        ((1.0, 0, 1), ["blue", "red", "blue"]),
        ((None, None), ["red", "blue"]),
        ((NAN, NAN), ["red", "blue"]),
    ):
        (raw_row,) = raw_rows("messages", record(*indices))
        assert raw_row.images == images
    for indices in ((2,), (-1,), (True,), (0.5,), ("1",)):
        assert reason_of("messages", record(*indices)) == "wrong_type"
    assert reason_of("messages", record(1)) == "image_count"  # one is named by no part
    assert reason_of("messages", record(0, None)) == "missing_image"


@pytest.mark.parametrize("flag", SUPERVISED_FLAGS)
def test_answers_that_are_no_targets(flag):
    """A flag of 0 or false: no target of the loss; 1 or true: one. What follows the last target is left out."""

    def row(first: Any, second: Any) -> list[tuple[str, bool]]:
        answers = [{"role": "assistant", "content": text, flag: value} for text, value in (("a", first), ("b", second))]
        turns = [AS_ROLES[0], answers[0], AS_ROLES[0], answers[1]]
        (raw_row,) = raw_rows("messages", {"messages": turns})
        return [(m["content"], m.get("supervised", True)) for m in raw_row.messages if m["role"] == "assistant"]

    for first, second in ((0, 1), (False, None), (0.0, True), (0, NAN), ("False", "1")):
        assert row(first, second) == [("a", False), ("b", True)]
    assert row(1, 0) == [("a", True)]
    assert row(0, 0) == [("a", False), ("b", False)]  # the check refuses it
    for value in (0.5, "no", [0]):
        with pytest.raises(BadRecord, match=flag):
            row(value, 1)


@pytest.mark.parametrize("flag", SUPERVISED_FLAGS)
def test_a_flag_beside_the_conversation_rejects_the_record(flag):
    """What switches an answer off within its turn switches off the whole record beside the turns."""
    for value in (0, False, "false"):
        assert reason_of("messages", {"messages": AS_ROLES, flag: value}) in ("weight", "nothing_supervised")


def test_torchtunes_mask_of_an_answer():
    """`masked: true` is no target; of a question, where it always stands, it says nothing; two flags must agree."""
    turns = [*AS_ROLES, AS_ROLES[0] | {"masked": True}, AS_ROLES[1] | {"masked": False}]
    turns[1] = turns[1] | {"masked": True}
    (raw_row,) = raw_rows("messages", {"messages": turns})
    assert [m.get("supervised", True) for m in raw_row.messages] == [True, False, True, True]
    assert reason_of("messages", {"messages": [AS_ROLES[0], AS_ROLES[1] | {"masked": True, "train": True}]}) == "weight"


@pytest.mark.parametrize("flag", [*SUPERVISED_FLAGS, "masked"])
def test_a_part_that_is_flagged_otherwise_than_its_answer(flag):
    """As Axolotl masks parts of an answer: refused, as it is learned whole or not. Of questions it says nothing."""
    off, on = (flag == "masked"), (flag != "masked")
    plain, masked, said = ({"type": "text", "text": "a"} | given for given in ({}, {flag: off}, {flag: on}))

    def targets(question: Any, answer: Any, **of_turn: Any) -> list[bool]:
        turns = [AS_ROLES[0] | {"content": question}, AS_ROLES[1] | {"content": answer} | of_turn]
        (raw_row,) = raw_rows("messages", {"messages": turns})
        return [message.get("supervised", True) for message in raw_row.messages]

    assert targets([masked, plain], [plain, said]) == [True, True]
    assert targets("A?", ["a", plain]) == [True, True]  # a bare text has no flags
    assert targets("A?", [masked, plain], **{flag: off}) == [True, False]
    for answer, of_turn in (
        ([masked, plain], {}),
        ([masked], {}),
        (json.dumps([plain, masked]), {}),
        ([plain, said], {flag: off}),
    ):
        with pytest.raises(BadRecord, match="a part of an answer is flagged otherwise") as error:
            targets("A?", answer, **of_turn)
        assert error.value.reason == "mask"
    assert reason_of("cauldron", {"texts": [{"user": "A?", "assistant": [plain, masked]}]}) == "mask"


def test_flags_that_contradict_each_other():
    """Two flags of one answer that say different things: neither is believed."""
    turns = [AS_ROLES[0], AS_ROLES[1] | {"weight": 0, "train": True}]
    assert reason_of("messages", {"messages": turns}) == "weight"


def test_of_a_prompt_in_messages_nothing_is_a_target():
    """Answers within TRL's conversational `prompt` are given, as TRL has it; the completion's are learned."""
    (raw_row,) = raw_rows("prompt_completion", {"prompt": [*AS_ROLES, AS_ROLES[0]], "completion": AS_ROLES[1:]})
    assert [m.get("supervised", True) for m in raw_row.messages] == [True, False, True, True]


@pytest.mark.parametrize(("rule", "key"), [(rule, key) for rule in RECORD_RULES for key in rule.keys])
def test_keys_of_a_record_that_change_its_meaning(rule, key):
    """Each known key rejects the record under its rule's reason and is named; a null or an off switch does not."""
    values = {
        "reasoning": "First this.",
        "undesired_answer": False,
        "weight": 0.5,
        "nothing_supervised": 0,
        "mask": [0, 1, 1],
        "unfinished": "length",
    }
    value = -1 if key == "reward" else values.get(rule.reason, "x")
    for format, record in (
        ("messages", {"messages": AS_ROLES}),
        ("llava", {"conversations": AS_LLAVA}),
        ("instruction", {"instruction": "A?", "output": "a"}),
        ("prompt_completion", {"prompt": "A?", "completion": "a"}),
        ("cauldron", {"texts": [{"user": "A?", "assistant": "a"}]}),
        ("webdataset", {"json": {"messages": AS_ROLES, key: value}}),
    ):
        with pytest.raises(BadRecord, match=key) as error:
            raw_rows(format, record if format == "webdataset" else record | {key: value})
        assert error.value.reason == rule.reason
        if format != "webdataset":
            assert conversation(format, record | {key: None}) == TURNS


@pytest.mark.parametrize("language_heavy", [True, False])
def test_kd_is_not_switched_otherwise_than_the_source_says(language_heavy):
    """A `distill` of a row, as files for a `Distiller` have it, is the source's, or the row is rejected by name."""
    question = {"question": "A?", "answer": "a"}
    for said in (language_heavy, str(language_heavy).lower(), int(language_heavy), None, "often"):
        record = question | {"distill": said}
        assert conversation("prompt_completion", record, language_heavy=language_heavy) == TURNS
    for said in (not language_heavy, str(not language_heavy), int(not language_heavy)):
        record = question | {"distill": said}
        assert reason_of("prompt_completion", record, language_heavy=language_heavy) == "distill"


@pytest.mark.parametrize("key", [key for rule in TURN_RULES for key in rule.keys])
def test_keys_of_a_turn_that_change_its_meaning(key):
    """Each known key of a turn rejects the record and is named; a null does not."""
    values = {"channel": "analysis"} | dict.fromkeys(("label", "kto_tag", "correct", *VERDICTS), False)
    values |= {"prefix": True, "partial": True, "eot": False, "end_turn": False}
    values |= {"finish_reason": "length", "stop_reason": "max_tokens", "reward": -1}
    value = values.get(key, [{"x": 1}])
    for first, second in ({}, {key: value}), ({key: value}, {}):
        with pytest.raises(BadRecord, match=f"'{key}'"):
            raw_rows("messages", {"messages": [AS_ROLES[0] | first, AS_ROLES[1] | second]})
    assert conversation("messages", {"messages": [AS_ROLES[0] | {key: None}, AS_ROLES[1] | {key: []}]}) == TURNS


@pytest.mark.parametrize(
    ("format", "record"),
    [
        ("webdataset", {"jpg": b"", "json": {"messages": AS_ROLES}}),
        ("messages", {"messages": AS_ROLES, "images": [{"bytes": b"", "path": None}]}),
        ("prompt_completion", {"prompt": "A?", "completion": "a", "image": b""}),
    ],
)
def test_a_picture_of_no_bytes_is_one(format, record):
    """It stays in the row, which is rejected for it; null is none."""
    (raw_row,) = raw_rows(format, record)
    (reference,) = raw_row.images
    with pytest.raises(BadRecord, match="the image is empty; a record without one has null there"):
        load_image(reference, ImageFolder(""))


@pytest.mark.parametrize("mark", ["<image 1>", "<image_00>", "<image1>", "<Image-1>"])
def test_numbered_marks_are_no_places_of_images(mark):
    """Where nothing else says where the images stand the record is rejected; beside `<image>` a mark is a reference."""
    record = {"image": "1.png", "prompt": f"What has {mark}?", "completion": "a"}
    assert reason_of("prompt_completion", record) == "image_token"
    settings = {"prompt": "{prompt}", "answer": "{completion}", "image": "image"}
    assert reason_of("template", record, **settings) == "image_token"
    expected = [("user", f"<image>What has {mark}?"), ("assistant", "a")]
    assert conversation("template", record, **settings | {"prompt": "<image>{prompt}"}) == expected


def test_what_a_turn_says_of_its_kind_is_metadata():
    """The channel of an answer, marks that it is whole, and one that it is no call of a tool."""
    turn = AS_ROLES[1] | {"channel": "final", "ipython": False, "tools": "[]"}
    turn |= {"prefix": False, "eot": True, "finish_reason": "stop", "reward": 0.5}
    assert conversation("messages", {"messages": [AS_ROLES[0], turn]}) == TURNS


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("img_path", "a/1.PNG"),
        ("image_file", "http://x/1.jpg?w=9"),
        ("Image", {"bytes": b"x", "path": None}),
        ("picture", b"x"),
        ("photos", ["", "1.jpg"]),
        ("image_list", '["1.webp"]'),
        ("file_name", "1.heic"),
        ("image_id", 458752),  # of COCO, VQAv2 and others, whose pictures are elsewhere
        ("imageId", "2370799"),  # of GQA
        ("image_link", "https://host.org/AbC"),
        ("pdf", b"%PDF-1.4"),  # of Docmatix
        ("frames", ["1.png", "2.png"]),
        ("attachments", [{"url": "1.png", "contentType": "image/png"}]),
        ("img_name", "COCO_train2014_1"),
        ("path", "a/1.jpg"),
        ("files", ["1.png"]),
        ("chart", "https://host.org/1.webp?w=9"),
        ("id", "COCO_train2014_000000000001.jpg"),
    ],
)
def test_a_picture_that_is_not_read_rejects_the_record(key, value):
    """Under a name that no format knows it would leave its question without an image; the name is said."""
    records = {
        "messages": {"messages": AS_ROLES},
        "llava": {"conversations": AS_LLAVA},
        "instruction": {"instruction": "A?", "output": "a"},
        "prompt_completion": {"prompt": "A?", "completion": "a"},
        "cauldron": {"texts": [{"user": "A?", "assistant": "a"}], "images": []},
        "webdataset": {"json": {"messages": AS_ROLES}},
    }
    for format, record in records.items():
        beside = record["json"] if format == "webdataset" else record
        with pytest.raises(BadRecord, match=f"'{key}' names a picture") as error:
            raw_rows(format, {"json": beside | {key: value}} if format == "webdataset" else record | {key: value})
        assert error.value.reason == "missing_image"


@pytest.mark.parametrize(
    ("key", "record"),
    [
        ("img_path", {"messages": [AS_ROLES[0] | {"img_path": "1.png"}, AS_ROLES[1]]}),
        ("picture", {"messages": {"role": ["user", "assistant"], "content": ["A?", "a"], "picture": ["1.png", None]}}),
        ("screenshot", {"messages": AS_ROLES, "screenshot": {"bytes": b"x", "path": None}}),
        ("page", {"messages": AS_ROLES, "pages": [{"page": {"bytes": b"x", "path": None}}]}),
        ("pages", {"messages": AS_ROLES, "pages": [{"bytes": b"x", "path": None}]}),
        ("screenshot", {"messages": AS_ROLES, "screenshot": "1.png"}),
        ("image", {"messages": AS_ROLES, "metadata": '{"source": "x", "image": "1.png"}'}),
        ("image_id", {"messages": AS_ROLES, "extra_info": "[{'image_id': 7}]"}),
        *[
            (key, {"messages": AS_ROLES, key: value})
            for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF")
            for encoded in [picture(encoding=kind)]
            for key, value in (
                ("content", encoded),
                ("contents", [base64.b64encode(encoded).decode()]),
                ("view", f"data:image/{kind.lower()};base64,{base64.b64encode(encoded).decode()}"),
            )
        ],
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_picture_in_a_turn_or_under_any_name_is_not_left_unread(key, record):
    """Beside a turn's text it is named as beside the conversation; a picture's bytes are one under any name."""
    with pytest.raises(BadRecord, match=f"'{key}' names a picture") as error:
        raw_rows("messages", record)
    assert error.value.reason == "missing_image"


def test_json_text_that_is_said_names_no_picture_of_the_row():
    """As an answer it is learned; in metadata it may name what is no picture."""
    answer = '{"image": "1.png"}'
    assert conversation("prompt_completion", {"prompt": "A?", "completion": answer})[1] == ("assistant", answer)
    assert conversation("messages", {"messages": AS_ROLES, "metadata": '{"source": "x", "page": 7}'})


@pytest.mark.parametrize("name", ["document", "context2", "source_article", "ctx_passages"])
def test_context_beside_a_conversation_is_not_left_out(name):
    """Prose that no prompt has rejects the record in any format; what a prompt was made of, or a name, does not."""
    passage = "Paris is a city.\nIt has a river."
    asked = {"role": "user", "content": f"Read: Paris is a city. It has a river. {AS_ROLES[0]['content']}"}
    formats: dict[str, tuple[dict, dict]] = {
        "messages": ({"messages": AS_ROLES}, {"messages": [asked, AS_ROLES[1]]}),
        "llava": ({"conversations": AS_LLAVA}, {"conversations": AS_LLAVA, "system": f"Of this: {passage}"}),
        "cauldron": ({"texts": [{"user": "A?", "assistant": "a"}]}, {"texts": [{"user": passage, "assistant": "a"}]}),
        "prompt_completion": ({"prompt": "A?", "completion": "a"}, {"prompt": f"{passage}\nA?", "completion": "a"}),
    }
    for format, (without, with_it) in formats.items():
        with pytest.raises(BadRecord, match=f"'{name}' is in no prompt") as error:
            raw_rows(format, without | {name: [{"text": passage}]})
        assert error.value.reason == "bad_turns"
        assert raw_rows(format, with_it | {name: passage}) == raw_rows(format, with_it)
        assert raw_rows(format, without | {name: "paris.txt"}) == raw_rows(format, without | {name: 7})


@pytest.mark.parametrize("name", ["context", "documents"])
def test_context_in_a_turn_is_not_left_out(name):
    """Of a question, or of the answer that was written with it; what a turn asks is in no need of being asked again."""
    passage = "Paris is a city. It has a river."
    for turns in (
        [AS_ROLES[0] | {name: [{"text": passage}]}, AS_ROLES[1]],
        [AS_ROLES[0], AS_ROLES[1] | {name: passage}],
        [{"user": "A?", "assistant": "a", name: passage}],
    ):
        with pytest.raises(BadRecord, match=f"'{name}' is in no prompt"):
            raw_rows("messages", {"messages": turns})
    asked = [AS_ROLES[0] | {"content": f"{passage}\nA?"}, AS_ROLES[1] | {name: passage}]
    assert conversation("messages", {"messages": asked})[1] == TURNS[1]
    pair = {"input": "Who is this man?", "output": "A king, I think."}
    assert conversation("messages", {"messages": [pair, pair]})[1::2] == [("assistant", "A king, I think.")] * 2


@pytest.mark.parametrize("name", ["chat_history", "previous_turns", "systemPrompt", "System", "meta_instruction"])
def test_what_was_said_before_under_a_name_that_is_not_read_is_not_left_out(name):
    """They belong to the conversation; those that it has, answers too, only stand there twice."""
    history = [{"role": "user", "content": "Who is she?"}, {"role": "assistant", "content": "A queen."}]
    with pytest.raises(BadRecord, match=f"'{name}' is in no prompt"):
        raw_rows("messages", {"messages": AS_ROLES, name: history})
    with pytest.raises(BadRecord, match=f"'{name}' is in no prompt"):
        raw_rows("instruction", {"instruction": "A?", "output": "Be polite.", name: "Be polite."})
    whole = {"messages": [*history, *AS_ROLES]}
    assert raw_rows("messages", whole | {name: history}) == raw_rows("messages", whole)


@pytest.mark.parametrize("name", ["text", "full_text", "abstract", "evidence", "fact1", "contents", "snippets"])
def test_a_text_beside_a_question_is_not_left_out(name):
    """It belongs to the question, unless this has it, or it is all of the question; nor do names and numbers."""
    question = {"question": "Where is the Seine?", "answer": "In Paris."}
    for value in ("Paris has a river, the Seine.", ["Paris.", "The Seine is a river."], "巴黎" * 30):
        with pytest.raises(BadRecord, match=f"'{name}' belongs to the question") as error:
            raw_rows("prompt_completion", question | {name: value})
        assert error.value.reason == "bad_turns"
    for value in (None, 3, "en", "### Question: Where is the Seine?\n### Answer: In Paris."):
        assert raw_rows("prompt_completion", question | {name: value}) == raw_rows("prompt_completion", question)
    asked = question | {"question": "Paris has a river, the Seine. Where is it?", name: "Paris has a river, the Seine."}
    assert raw_rows("prompt_completion", asked)


@pytest.mark.parametrize("name", ["question", "instruction"])
def test_what_is_asked_beside_a_prompt_is_not_left_out(name):
    """A prompt that was made of it has it; other columns are what the prompt was made from."""
    record = {"prompt": "Answer in French: What is 1 + 1?", "completion": "deux"}
    assert reason_of("prompt_completion", record | {name: "Be polite."}) == "bad_turns"
    for beside in ({name: "What is 1 + 1?"}, {name: None}, {"text": "One and one are two."}):
        assert raw_rows("prompt_completion", record | beside) == raw_rows("prompt_completion", record)


def test_alpacas_text_is_its_instruction_input_and_output_again():
    """Rendered by its template, they stand apart in it; a text without the input is another one."""
    record = {"instruction": "Name the capital.", "input": "The country is France.", "output": "Paris"}
    text = (
        "Below is.\n\n### Instruction:\nName the capital.\n\n### Input:\nThe country is France.\n\n### Response:\nParis"
    )
    assert raw_rows("instruction", record | {"text": text}) == raw_rows("instruction", record)
    assert reason_of("instruction", record | {"text": "Name the capital. It is large."}) == "bad_turns"


def test_options_count_as_asked_by_whole_words_alone():
    """The letters of options stand in any question, as parts of its words; those that it lists are asked."""
    asked = {"question": "Which label is a beak?", "answer": "b"}
    assert reason_of("prompt_completion", asked | {"options": ["a", "b"]}) == "bad_turns"
    listed = asked | {"question": "Which label is a beak?\n(a) a\n(b) b", "options": ["a", "b"]}
    assert len(raw_rows("prompt_completion", listed)) == 1


def test_an_answer_beside_a_conversation_that_ends_with_a_question():
    """It would be left out with its question, as of ChatQA; where the conversation has its answer it is metadata."""
    asked = {"messages": [*AS_ROLES, {"role": "user", "content": "B?"}], "answers": ["b"]}
    with pytest.raises(BadRecord, match="'answers' beside a question at the end: write it as the last turn"):
        raw_rows("messages", asked)
    assert conversation("messages", asked | {"answers": []}) == TURNS
    assert conversation("messages", {"messages": AS_ROLES, "answers": ["b"]}) == TURNS


def test_a_question_without_options_is_one():
    """Where those of other rows stand, an empty list, also as text, or null."""
    for nothing in ("[]", [], None, " ", "{}"):
        assert conversation("prompt_completion", {"question": "A?", "answer": "a", "options": nothing}) == TURNS


@pytest.mark.parametrize(
    ("column", "value", "is_one"),
    [
        ("image", {"bytes": b"x", "path": None}, True),
        ("page", {"bytes": b"x", "path": None}, True),
        ("images", [{"bytes": None, "path": "1.png"}], True),
        ("scan", picture(), True),
        ("image_path", "1.png", True),
        ("image", None, False),
        ("images", [], False),
        ("image_url", "https://host.org/1.jpg", False),  # of an article
        ("file_name", "logo.svg", False),  # what is drawn as text
        ("image", "a blue one", False),
    ],
)
def test_a_picture_that_a_template_or_text_does_not_read(column, value, is_one):
    """Its row would be learned unseen: it is rejected with the cure, unless `image` is set. Metadata are none."""
    record = {"text": "a b c d e f", "label": "cat", column: value}
    for format, settings, cure in (
        ("template", {"prompt": "What?", "answer": "{label}"}, "set `image` to its column"),
        ("text", {"prompt_words": 2}, "by `format: template`"),
    ):
        if is_one:
            with pytest.raises(BadRecord, match=f"'{column}' is a picture that nothing reads: .*{cure}") as error:
                raw_rows(format, record, **settings)
            assert error.value.reason == "missing_image"
        else:
            assert raw_rows(format, record, **settings)
    if is_one:
        assert raw_rows("template", record, prompt="What?", answer="{label}", image=column)[0].images


@pytest.mark.parametrize(("key", "value"), [("audio", {"bytes": b"RIFF", "path": "1.wav"}), ("videos", ["1.mp4"])])
def test_media_that_a_template_or_text_does_not_read(key, value):
    """They are called what they are, and the cure is no setting for pictures."""
    for format, settings in (("template", {"prompt": "What?", "answer": "{label}"}), ("text", {"prompt_words": 2})):
        with pytest.raises(
            BadRecord, match=f"'{key}': video and audio are not trained on; take the column out"
        ) as error:
            raw_rows(format, {"text": "a b c d e f", "label": "cat", key: value}, **settings)
        assert error.value.reason == "missing_media"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("video_id", 1301),  # of MSVD-QA
        ("video_name", "v_x"),
        ("videoID", "x"),
        ("clip_uid", "ab"),
        ("audio_file", "a"),
        ("speech", "1.wav"),
        ("file_name", "1.wav"),
        ("media_path", "https://host.org/1.MP4"),
        ("files", ["1.wav"]),
    ],
)
def test_a_question_about_video_or_audio_that_a_key_names(key, value):
    """It would be learned unseen and unheard; an empty key, and names of other files, are metadata."""
    question = {"question": "What is he playing?", "answer": "A guitar."}
    with pytest.raises(BadRecord, match=f"'{key}' names video or audio") as error:
        raw_rows("prompt_completion", question | {key: value})
    assert error.value.reason == "missing_media"
    assert raw_rows("prompt_completion", question | {key: None, "path": "a.txt", "clip": "short", "url": "x.mp4"})


def test_what_is_said_of_pictures_is_metadata():
    """Numbers, sizes, kinds and empty fields; and other pictures beside those of the conversation."""
    about: dict[str, Any] = {"image_id": None, "has_image": False, "image_format": "png", "image_size": [3, 4]}
    empty: dict[str, Any] = {"img_path": "", "picture": {"bytes": None, "path": None}, "photos": [], "file_name": "a.c"}
    assert conversation("messages", {"messages": AS_ROLES} | about | empty | {"objects": BOXES}) == TURNS
    seen = {"messages": AS_ROLES, "image": "1.png", "image_mask": "2.png", "image_id": 7, "image_2": None}
    assert conversation("messages", seen)[0] == ("user", "<image>A?")


BOXES = {"ref": ["dog"], "bbox": [[1, 2, 3, 4]]}


def with_parts(*parts: Any, **beside: Any) -> dict:
    return {"messages": [{"role": "user", "content": list(parts)}, AS_ROLES[1]], **beside}


@pytest.mark.parametrize(
    ("format", "record", "reason"),
    [
        ("messages", {"text": "x"}, "missing_field"),
        ("messages", {"messages": "x"}, "wrong_type"),
        ("messages", {"messages": '[{"role":'}, "wrong_type"),
        ("messages", {"messages": [{"role": "system", "content": "S"}, *AS_ROLES], "system": "T"}, "bad_turns"),
        ("messages", {"messages": ["x"]}, "wrong_type"),
        ("messages", {"messages": {"role": ["user"], "content": ["x", "y"]}}, "wrong_type"),
        ("messages", {"messages": [{"role": "user", "content": 5}]}, "wrong_type"),
        ("messages", {"messages": [AS_ROLES[0], {"role": "assistant", "content": ["red", "dark red"]}]}, "wrong_type"),
        ("cauldron", {"texts": [{"user": "A?", "assistant": ["red", "dark red"]}]}, "wrong_type"),
        ("messages", {"messages": [{"role": "user"}]}, "missing_field"),
        ("messages", {"messages": [AS_ROLES[0], {"role": "tool", "content": "7"}]}, "tools"),
        (
            "messages",
            {"messages": [AS_ROLES[0] | {"name": "Ann"}, AS_ROLES[1], AS_ROLES[0] | {"name": "Bo"}]},
            "bad_turns",
        ),
        ("messages", {"messages": AS_ROLES, "history": [["q", "a"]]}, "bad_turns"),
        ("cauldron", {"texts": [{"user": "A?", "assistant": "a"}], "history": [["q", "a"]]}, "bad_turns"),
        (
            "messages",
            {"messages": [AS_ROLES[0], AS_ROLES[1] | {"content": "<bbox>"}], "objects": BOXES},
            "missing_value",
        ),
        (
            "llava",
            {"conversations": [{"from": "human", "value": "<bbox0>?"}, AS_LLAVA[1]], "bboxes": [[1, 2, 3, 4]]},
            "missing_value",
        ),
        (
            "llava",
            {"conversations": [{"from": "human", "value": "<region1>?"}, AS_LLAVA[1]], "annotation": [{"bbox": [1]}]},
            "missing_value",
        ),
        ("prompt_completion", {"query": "<ref-object>?", "response": "No.", "objects": BOXES}, "missing_value"),
        *[
            ("llava", {"conversations": [{"from": "human", "value": mark}, AS_LLAVA[1]], **boxes}, "missing_value")
            for mark, boxes in (
                ("<boxes>?", {"target": {"boxes": [[1, 2, 3, 4]]}}),
                ("<bbox_location0>?", {"box_x1y1x2y2": [[[1, 2, 3, 4]]]}),
            )
        ],
        ("messages", {"messages": [{"role": "system", "content": "S"}, *AS_ROLES], "system": "T"}, "bad_turns"),
        ("messages", {"messages": [AS_ROLES[0] | {"images": ["1", "2"], "content": "<image>"}]}, "image_count"),
        ("messages", with_parts({"type": "video", "video": "1.mp4"}), "missing_media"),
        ("messages", with_parts({"type": "input_audio"}), "missing_media"),
        ("messages", with_parts({"type": "tool_use", "input": {}}), "tools"),
        ("messages", with_parts({"type": "image", "image": "1.png", "text": "lost"}), "wrong_type"),
        ("messages", with_parts({"type": "text", "text": "x", "image": "1.png"}), "wrong_type"),
        ("messages", with_parts({"text": None, "image": None}), "wrong_type"),
        ("messages", with_parts({"type": "text", "text": None}), "missing_value"),
        ("messages", with_parts({"type": "image", "path": "1"}, {"type": "image"}, images=["1", "2"]), "missing_image"),
        ("messages", with_parts({"type": "image", "path": "1"}, images=["1", "2"]), "image_count"),
        ("cauldron", {"texts": [{"user": "x"}], "images": []}, "missing_field"),
        ("cauldron", {"texts": [{"user": "<image>", "assistant": "y", "images": ["1", "2"]}]}, "image_count"),
        ("cauldron", {"texts": [{"user": "x", "assistant": "y", "image": "1"}], "images": ["2", "3"]}, "image_count"),
        ("prompt_completion", {"prompt": '[{"role": "tool", "content": "7"}]', "completion": "x"}, "tools"),
        ("llava", {"conversations": [{"from": "robot", "value": "x"}]}, "bad_turns"),
        ("llava", {"conversations": [*AS_LLAVA, {"from": "observation", "value": "x"}]}, "tools"),
        ("llava", {"conversations": AS_LLAVA, "images": ["1", None]}, "missing_image"),
        ("llava", {"conversations": AS_LLAVA, "images": ["1"], "image": "2"}, "image_count"),
        ("prompt_completion", {"prompt": "x", "completion": 3}, "wrong_type"),
        ("prompt_completion", {"prompt": "x"}, "missing_field"),
        ("prompt_completion", {"prompt": "x", "chosen": "a", "rejected": "b"}, "preference_pair"),
        ("prompt_completion", {"prompt": "x", "completion": "y", "label": "False"}, "undesired_answer"),
        ("prompt_completion", {"question": "x", "answer": "B", "choices": ["a", "b"]}, "bad_turns"),
        *[
            ("prompt_completion", {asked: "x", answered: "B", name: "It is about this."}, "bad_turns")
            for asked, answered in (("question", "answer"), ("question", "response"), ("query", "response"))
            for name in ("context", "input", "article", "story", "paragraph", "contexts", "Passage", "A", "option_a")
        ],
        *[
            (format, record | {name: "It is about this."}, "bad_turns")
            for format, record, belonging in (
                (
                    "prompt_completion",
                    {"question": "x", "answer": "y"},
                    ("instruction", "dialogue", "background", "Body"),
                ),
                ("instruction", {"instruction": "x", "output": "y"}, ("question", "passage", "options", "inputs")),
            )
            for name in belonging
        ],
        ("webdataset", {"jpg": b"x", "txt": b"A cat.", "json": b'{"caption": "A dog."}'}, "bad_turns"),
        *[
            ("webdataset", {"jpg": b"x", "txt": b"A cat.", "json": {asked: "What?", "answers": ["a"]}}, "missing_field")
            for asked in ("question", "instruction")
        ],
        *[
            ("prompt_completion", {"prompt": "x", "completion": "y", "image": "1.png", name: "2.png"}, "image_count")
            for name in ("image_2", "image_b", "ImageAfter")
        ],
        ("llava", {"conversations": AS_LLAVA, "images": ["1.png"], "image2": {"bytes": b"x"}}, "image_count"),
        *[
            ("prompt_completion", {"question": "x", "answer": "B", first: "a", second: "b"}, "bad_turns")
            for first, second in (("choiceA", "choiceB"), ("option1", "option2"), ("answer_choices", "answer_idx"))
        ],
        ("prompt_completion", {"question": "x", "answer": "4", "response": "2 + 2 = 4"}, "bad_turns"),
        ("instruction", {"instruction": None, "output": "x"}, "missing_value"),
        ("prompt_completion", {"prompt": "x", "completion": NAN}, "missing_value"),
        ("text", {"text": None}, "missing_value"),
        ("messages", {"messages": None}, "missing_value"),
        ("scienceqa", {"question": " ", "choices": ["a", "b"], "answer": 0}, "empty_message"),
        ("scienceqa", {"question": "?", "choices": ["a", ""], "answer": 0}, "empty_message"),
        ("instruction", {"instruction": "x", "output": "y", "history": [["q"]]}, "wrong_type"),
        ("instruction", {"instruction": "x", "output": "y", "history": [AS_ROLES[0] | {"image": "1"}]}, "image_count"),
        ("scienceqa", {"question": "?", "choices": ["a", "b"], "answer": True}, "wrong_type"),
        ("scienceqa", {"question": "?", "choices": ["x"] * 27, "answer": 26}, "wrong_type"),
        ("webdataset", {"jpg": b"x"}, "missing_field"),
        ("webdataset", {"jpg": b"x", "json": b"{"}, "bad_json"),
        ("webdataset", {"jpg": b"x", "txt": b"\xff"}, "wrong_type"),
        ("webdataset", {"txt": b"a cat"}, "missing_image"),
        ("webdataset", {"json": {"question": "What is it?", "answer": "a cat"}}, "missing_image"),
        ("webdataset", {"json": {"caption": "a cat"}, "jpg": {"bytes": None, "path": None}}, "missing_image"),
        ("webdataset", {"json": {"messages": AS_ROLES, "image": "1.jpg"}}, "missing_image"),
        ("webdataset", {"jpg": b"x", "mp4": b"x", "txt": b"a cat"}, "missing_media"),
        ("webdataset", {"jpg": b"x", "left.mp4": b"x", "txt": b"a cat"}, "missing_media"),
        ("webdataset", {"jpg": b"x", "1.jpg": b"y", "txt": b"a cat"}, "image_count"),
        ("webdataset", {"png": b"x", "right.avif": b"y", "json": {"messages": AS_ROLES}}, "image_count"),
        ("webdataset", {"jpg": b"x", "json": {"caption": "a cat", "images": ["1.jpg", "2.jpg"]}}, "image_count"),
        ("webdataset", {"jpg": b"x", "png": b"y", "json": {"messages": AS_ROLES, "image": "1.jpg"}}, "image_count"),
        ("template", {"q": "x", "picture": None}, "missing_image"),
    ],
)
def test_records_of_another_shape_say_so(format, record, reason):
    """A record that does not fit its format is a bad record with its reason."""
    settings = {"prompt": "{q}", "answer": "{q}", "image": "picture"} if format == "template" else {}
    assert reason_of(format, record, **settings) == reason


def test_a_blank_field_is_named_as_it_is_called():
    """And not another name of it, as `content` for a question of XTuner's; beside a picture such a question is one."""
    pair = {"input": " ", "output": "A cat.", "images": ["1.png"]}
    assert conversation("messages", {"conversation": [pair]})[0] == ("user", "<image> ")
    with pytest.raises(BadRecord, match="'response' is null"):
        raw_rows("prompt_completion", {"query": "A?", "response": None})
    assert reason_of("messages", {"conversations": "what?"}) == "wrong_type"


@pytest.mark.parametrize("suffixes", [("left.jpg", "right.jpg"), ("avif",)])
def test_unknown_members_of_a_sample_are_named(suffixes):
    """A caption whose image is of no known kind is no row without an image; what the sample has is named."""
    with pytest.raises(BadRecord, match=", ".join(suffixes)):
        raw_rows("webdataset", {"txt": b"a cat"} | {suffix: b"x" for suffix in suffixes})


@pytest.mark.parametrize(
    ("format", "record"),
    [
        ("messages", {"dialogue": AS_ROLES}),
        ("cauldron", {"texts": [{"user": "A?", "assistant": "a"}]}),
        ("prompt_completion", {"prompt": "A?", "completion": "a"}),
        ("prompt_completion", {"prompt": "A?", "response": "a"}),
        ("prompt_completion", {"question": "A?", "answer": "a"}),
        ("prompt_completion", {"query": "A?", "response": "a"}),
        ("instruction", {"instruction": "A?", "output": "a"}),
        ("scienceqa", {"question": "A?", "choices": ["a", "b"], "answer": 0}),
    ],
)
def test_a_sample_is_what_its_json_is(format, record):
    """The JSON beside a picture is read as the format that its keys tell, whatever caption stands there as well."""
    (expected,) = raw_rows(format, record | {"images": [b"x"]})
    for beside in ({}, {"txt": b"A cat."}):
        assert raw_rows("webdataset", {"jpg": b"x", "json": record} | beside) == [expected]


def test_webdataset_as_the_hub_has_it():
    """Parquet that `datasets` makes of tars: images as bytes and path, json an object, txt text, key and URL."""
    record = {"png": PICTURE, "jpg": None, "json": {"caption": None}, "txt": "A cat.", "__key__": "1", "__url__": "u"}
    (raw_row,) = raw_rows("webdataset", record)
    assert raw_row.images == [PICTURE]
    assert [m["content"] for m in raw_row.messages] == ["<image>What is in the picture?", "A cat."]


def test_members_that_are_no_images_are_metadata():
    """A class, a second text, and images that the JSON names as many as there are; a mark before a text is no text."""
    members = {"jpg": b"1", "png": b"2", "cls": b"7", "ocr.txt": b"x", "txt": "\ufeffA cat.".encode()}
    (raw_row,) = raw_rows("webdataset", members | {"json": b'\xef\xbb\xbf{"images": ["1.jpg", "1.png"], "width": 3}'})
    assert raw_row.images == [b"1", b"2"] and raw_row.messages[1]["content"] == "A cat."


def test_images_of_a_sample_stand_in_the_order_in_which_its_json_names_them():
    """And further ones are read that it names, all of them; which is the first one is not told by their suffixes."""
    asked = {"question": "First?", "answer": "A cat."}
    for first, second in (("png", "jpg"), ("1.jpg", "0.jpg"), ("jpg", "b.png")):
        json_member = asked | {"images": [f"a/k.{first}", f"k.{second}"]}
        (raw_row,) = raw_rows("webdataset", {first: b"1", second: b"2", "json": json_member})
        assert raw_row.images == [b"1", b"2"]
    for named in (["k.0.jpg"], ["k.0.jpg", "k.0.jpg"], ["k.0.jpg", "k.2.jpg"]):
        sample = {"0.jpg": b"1", "1.jpg": b"2", "json": asked | {"images": named}}
        assert reason_of("webdataset", sample) in ("image_count", "missing_image")


@pytest.mark.parametrize("verdict", VERDICTS)
def test_a_template_takes_no_answer_that_is_said_to_be_bad(verdict):
    """As P3 and OpenMathInstruct hold them beside good ones; a template that asks for the verdict learns it."""
    record = {"q": "1 + 1?", "a": "3", verdict: False}
    for bad in (False, 0, 0.0, "False", "0"):
        assert reason_of("template", record | {verdict: bad}, prompt="{q}", answer="{a}") == "undesired_answer"
    assert conversation("template", record | {verdict: True}, prompt="{q}", answer="{a}")[1] == ("assistant", "3")
    judged = conversation("template", record, prompt="{q} {a}?", answer=f"{{{verdict}!s}}")
    assert judged[1] == ("assistant", "False")


def test_a_blank_column_of_a_template_is_missing():
    """Of an answer each, as a table has null; of a prompt all of them, for an instruction may have no input."""
    settings = {"prompt": "Do {task}: {input}", "answer": "It is {name}."}
    record = {"task": "it", "input": "", "name": "red"}
    assert conversation("template", record, **settings) == [("user", "Do it: "), ("assistant", "It is red.")]
    for blank, name in (({"name": " "}, "name"), ({"task": ""}, "task")):
        with pytest.raises(BadRecord, match=f"{{{name}}} of .* is blank") as error:
            raw_rows("template", record | blank, **settings)
        assert error.value.reason == "missing_value"
    with pytest.raises(BadRecord, match=r"{title} of .* is blank"):
        raw_rows("text", {"text": "a b c", "title": ""}, prompt="Go on with {title}:", prompt_words=1)


def test_template_names_the_missing_column():
    """A format string over a column that is not there names it and those that are."""
    with pytest.raises(BadRecord, match=r"no column 'q'.*there are: question"):
        raw_rows("template", {"question": "x"}, prompt="{q}", answer="y")
