import pytest
from tiny import picture, tiny_processor

from lingu_ray.corpus.check import Checker, check_placeholders
from lingu_ray.corpus.encode import Encoder
from lingu_ray.corpus.image_folder import ImageFolder
from lingu_ray.corpus.record import BadRecord, RawRow


@pytest.fixture(scope="module")
def checker():
    return Checker(Encoder(tiny_processor(), max_length=64), "s", distill=True)


def said(user: str, assistant: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def test_a_good_raw_row_becomes_a_row(checker, tmp_path):
    """Bytes, a path, and a Hugging Face image in one row; the encoded bytes are kept as they are."""
    (tmp_path / "a.png").write_bytes(picture(1))
    images = [picture(0), "a.png", {"bytes": picture(2, encoding="JPEG"), "path": None}]
    checked = checker.check(RawRow(said("<image><image><image>?", "Yes."), images), ImageFolder(tmp_path))
    assert checked["images"] == [picture(0), picture(1), picture(2, encoding="JPEG")]
    assert checked["distill"]
    assert not checked["truncated"]


def test_a_long_answer_is_marked_as_truncated(checker, tmp_path):
    """An answer over max_length makes a good row that is counted."""
    assert checker.check(RawRow(said("?", "word " * 100), []), ImageFolder(tmp_path))["truncated"]


@pytest.mark.parametrize("before", [[], said("First?", "Yes."), [{"role": "system", "content": "Be brief."}]])
def test_an_empty_answer_is_told_by_its_own_question(checker, before, tmp_path):
    """Not by the first one of the conversation, which has an answer."""
    with pytest.raises(BadRecord, match=r"no answer to 'And now\?'"):
        checker.check(RawRow([*before, *said("And now?", " ")], []), tmp_path)


@pytest.mark.parametrize(
    ("messages", "images", "reason"),
    [
        (said("?", "  \n"), [], "empty_answer"),
        (said("?", "\u200b\ufeff \0"), [], "empty_answer"),
        (said("\u200b", "Yes."), [], "empty_message"),
        (said("<image>?", "Yes."), [], "missing_image"),
        (said("<image>?", "Yes."), [None], "missing_image"),
        (said("<image>?", "Yes."), ["nowhere.png"], "missing_image"),
        (said("<image>?", "Yes."), [picture(), picture()], "image_count"),
        (said("<image>?", "Yes."), [b"no image"], "bad_image"),
        (said("<image>?", "Yes."), [picture(0, (64, 64))[:-500]], "bad_image"),
        (said("<image>?", "Yes."), [7], "wrong_type"),
        (said("?", "<image>"), [picture()], "image_in_answer"),
        (said("Picture 1: <img>a b.png</img>\nWho?", "She."), [], "missing_image"),
        (said("<image><img>a.png</img>?", "Yes."), [picture()], "missing_image"),
        (said("<|vision_start|><|image_pad|><|vision_end|>?", "Yes."), [], "image_token"),
        (said("<image>A: <|image_1|> B: <|image_2|>?", "Yes."), [picture()], "image_token"),
        ([{"role": "system", "content": "<ImageHere>"}, *said("?", "Yes.")], [], "image_token"),
        (said("<|begin_of_image|>?", "Yes."), [], "image_token"),
        (said("<im_patch>?", "Yes."), [], "image_token"),
        (said("<|IMAGE|>?", "Yes."), [], "image_token"),
        (said("<|IMAGE_PLACEHOLDER|>?", "Yes."), [picture()], "image_token"),
        (said("<|img|>?", "Yes."), [picture()], "image_token"),
        (said("[IMG]\nWhat is it?", "A cat."), [picture()], "image_token"),
        (said("<image><img>\nWhat is it?", "A cat."), [picture()], "image_token"),
        (said("(<image>./</image>)\nWhat is it?", "A cat."), [picture()], "image_token"),
        (said("What is in <image 1>?", "A cat."), [], "image_token"),
        (said("<image><IMAGE>What is it?", "A cat."), [picture()], "image_token"),
        (said("<image>What is <image/>?", "A cat."), [picture()], "image_token"),
        (said("?", "Yes.</s>\n"), [], "end_of_turn"),
        (said("?", "Yes. <|eot_id|>"), [], "end_of_turn"),
        (said("?", "Yes.<｜end▁of▁sentence｜>"), [], "end_of_turn"),
        (said("?", "Yes.<eos>"), [], "end_of_turn"),
        (said("<s>[INST] Who? [/INST]", "She."), [], "rendered"),
        (said("<start_of_turn>user\nWho?<end_of_turn>\n<start_of_turn>model\n", "She."), [], "rendered"),
        (said("<|user|>\nWho?</s>\n<|assistant|>\n", "She."), [], "rendered"),
        (said("Who?", "She.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nWhy? So."), [], "rendered"),
        (said("Who?", "She.### Assistant: He."), [], "rendered"),  # a passage of `text`
        (said("Who?\n<extra_id_1>Assistant\nShe.\n<extra_id_1>User\nWhy?", "So."), [], "rendered"),  # HelpSteer2
        (said("[USER]Who?[ASSISTANT]", "She."), [], "rendered"),  # PixMo-CapQA
        (said("<|prompter|>Who?<|endoftext|><|assistant|>", "She."), [], "rendered"),
        (said("<｜User｜>Who?<｜Assistant｜>", "She."), [], "rendered"),
        (said("<|start|>user<|message|>Who?", "She."), [], "rendered"),
        (said("<human>: Who?\n<bot>:", "She."), [], "rendered"),
        (said("### Instruction:\nWho?\n\n### Response:", "She."), [], "rendered"),
        (said("\n\nHuman: Who?\n\nAssistant:", "She."), [], "rendered"),
        (said("USER: Who? ASSISTANT:", "She."), [], "rendered"),
        (said("word " * 100, "Yes."), [], "prompt_too_long"),
        (said("?", "Yes.")[:1], [], "bad_turns"),
        (said("?", "Yes.")[::-1], [], "bad_turns"),
        ([], [], "bad_turns"),
        ([{"role": "tool", "content": "x"}, *said("?", "Yes.")], [], "bad_turns"),
        ([*said("?", "Yes."), {"role": "system", "content": "x"}, *said("?", "Yes.")], [], "bad_turns"),
        ([{"role": "system", "content": "x"}] * 2 + said("?", "Yes."), [], "bad_turns"),
        (said("?", "Yes.")[:1] * 2 + said("?", "Yes."), [], "bad_turns"),
        ([{"role": "system", "content": ""}, *said("?", "Yes.")], [], "empty_message"),
        (said("", "Yes."), [], "empty_message"),
        (said(" \n", "Yes."), [], "empty_message"),
        (said("?", "Yes\ud83d"), [], "bad_text"),
        (said("<video>\nWho?", "She."), [], "missing_media"),
        (said("<|video_pad|>Who?", "She."), [], "missing_media"),
        (said("<|VIDEO|>Who?", "She."), [], "missing_media"),
        (said("<|audio_pad|>Who?", "She."), [], "missing_media"),
        ([{"role": "system", "content": "<audio>"}, *said("?", "Yes.")], [], "missing_media"),
        ([message | {"supervised": False} for message in said("?", "Yes.")], [], "nothing_supervised"),
    ],
)
def test_each_kind_of_bad_row_has_its_reason(checker, tmp_path, messages, images, reason):
    """Whatever is wrong with a raw row is raised as a bad record under its own reason."""
    with pytest.raises(BadRecord) as error:
        checker.check(RawRow(messages, images), ImageFolder(tmp_path))
    assert error.value.reason == reason


@pytest.mark.parametrize(
    ("messages", "images"),
    [
        (said("<image>", "Yes."), [picture()]),
        (said("<image><image>", "The same twice."), [picture(), picture()]),
        (said("How do I embed a film?", "With <video>, as in <video src='x.mp4'>."), []),
        (said("<img>, <img src='a'></img>, <img></img>?", "<img>a</img>"), []),
        (said("<image>What is in <image 1>?", "It is <|image_1|>."), [picture()]),
        (said("An assistant: what is it? Its response:", "A helper.\n\nAssistant:"), []),
        (said("What are <|user|s and INST?", "### Response\nMarks."), []),
        (said("a\x00b, e\u0301, \u00e9, \U0001f600", "Fine."), []),
        ([said("?", "No.")[0], said("?", "No.")[1] | {"supervised": False}, *said("Sure?", "Yes.")], []),
    ],
)
def test_what_is_fine_is_not_refused(checker, tmp_path, messages, images):
    """An image alone as a question, one image twice, tags in an answer, its number, odd characters, no target."""
    assert checker.check(RawRow(messages, images), ImageFolder(tmp_path))["messages"] == messages


def test_the_students_own_image_token_in_a_text():
    """Where the student's image token is not the placeholder, text that holds it would ask for an image: any text."""
    check_placeholders(said("<image>?", "Yes."), 1, "<|image_pad|>")
    for turns in (said("<image> and <|image_pad|>?", "Yes."), said("<image>?", "<|image_pad|>")):
        with pytest.raises(BadRecord, match=r"the text holds <\|image_pad\|>, for which the student expects an image"):
            check_placeholders(turns, 1, "<|image_pad|>")
