"""Mistral's models come with tekken.json, alone or beside a tokenizer.json: either way Transformers reads them."""

from __future__ import annotations

import base64
import importlib
import json
from pathlib import Path

import pytest
from transformers import CLIPImageProcessorPil, LlavaProcessor, Mistral3Config, MistralConfig
from transformers.integrations.mistral import convert_tekken_tokenizer

from lingu_ray.config import StudentConfig, TeacherConfig
from lingu_ray.corpus.encode import Encoder
from lingu_ray.corpus.processor import run_processor
from lingu_ray.distill.pair import check_tokenizers
from lingu_ray.evaluation.engines.load import load_model_files
from lingu_ray.runtime.models.load import load_processor, teacher_tokens

ROOT = Path(__file__).parents[3]
SPECIAL = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"]
SPECIAL += ["[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]"]
SPECIAL += ["[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"]
IMAGE = SPECIAL.index("[IMG]")
WORDS = [*(bytes([i]) for i in range(256)), b"th", b"the"]
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST]{% for part in m['content'] %}"
    "{{ part['text'] if part['type'] == 'text' else '[IMG]' }}{% endfor %}[/INST]"
    "{% else %}{{ m['content'][0]['text'] }}{{ eos_token }}{% endif %}{% endfor %}"
)


def write_tekken(folder: Path) -> Path:
    """A vocabulary of bytes and two words, in Mistral's own form."""
    config = {"pattern": r"\p{L}+|\p{N}|\s+|[^\s\p{L}\p{N}]+", "version": "v7", "num_vocab_tokens": len(WORDS)}
    config |= {"default_vocab_size": len(SPECIAL) + len(WORDS), "default_num_special_tokens": len(SPECIAL)}
    ranks = [
        {"rank": i, "token_bytes": base64.b64encode(word).decode(), "token_str": None} for i, word in enumerate(WORDS)
    ]
    special = [{"rank": i, "token_str": token, "is_control": True} for i, token in enumerate(SPECIAL)]
    file = folder / "tekken.json"
    file.write_text(json.dumps({"config": config, "vocab": ranks, "special_tokens": special}), encoding="utf-8")
    return file


@pytest.fixture(params=["alone", "beside tokenizer.json"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """Teacher and student without weights."""
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    text = MistralConfig(**SIZES, vocab_size=len(SPECIAL) + len(WORDS), bos_token_id=1, eos_token_id=2)
    text.save_pretrained(teacher)
    vision = SIZES | {"model_type": "pixtral", "image_size": 16, "patch_size": 4}
    Mistral3Config(text_config=text.to_dict(), vision_config=vision, image_token_index=IMAGE).save_pretrained(student)
    tokenizer = convert_tekken_tokenizer(str(write_tekken(teacher)))
    tokenizer.add_bos_token = True
    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    LlavaProcessor(
        images,
        tokenizer,
        patch_size=4,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATE,
        image_token="[IMG]",
    ).save_pretrained(student)
    write_tekken(student)
    if request.param == "alone":
        (student / "tokenizer.json").unlink()
        (student / "tokenizer_config.json").unlink()
    else:
        tokenizer.save_pretrained(teacher)
    return teacher, student


def test_a_teacher_has_all_of_its_tokens(pair: tuple[Path, Path]) -> None:
    """With BOS, as Mistral's library gives them; every id has a text of its own, so that pairs can be compared."""
    tokenizer, known = teacher_tokens(TeacherConfig(path=str(pair[0])))
    measured = load_model_files(pair[0]).tokenizer
    for one in (tokenizer, measured):
        assert one("the é")["input_ids"] == [1, *(len(SPECIAL) + i for i in (257, 0x20, 0xC3, 0xA9))]
        assert (one.bos_token, one.eos_token) == ("<s>", "</s>")
    assert known == len(tokenizer.get_vocab()) == len(SPECIAL) + len(WORDS)
    check_tokenizers(load_processor(StudentConfig(path=str(pair[1]))).tokenizer, tokenizer)


def test_a_student_is_asked_by_its_chat_template(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """And so it is when a run has saved its processor; conversations can be trained with it."""
    processor = load_processor(StudentConfig(path=str(pair[1])))
    processor.save_pretrained(tmp_path / "saved")
    for one in (processor, run_processor(tmp_path / "saved", trust_remote_code=False)):
        encoder = Encoder(one, 100)
        encoder.check_template()
        assert encoder.template == TEMPLATE and encoder.end_of_turn_id == 2 and encoder.image_token_id == IMAGE
        prompt = encoder.encode_conversation([{"role": "user", "content": "the"}], [])
        assert prompt.input_ids_T.tolist() == [1, 3, len(SPECIAL) + 257, 4]


def test_a_loop_of_ones_own_asks_by_it(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples read processors as runs do: AutoProcessor has Mistral's library read the file, where that is."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    own_loop = importlib.import_module("own_loop")
    row = {"question": "the", "answer": "th", "distill": True}
    batch = own_loop.collate(own_loop.read_processor(str(pair[1])), [row])
    answer = [len(SPECIAL) + 256, 2]
    assert batch["input_ids"].tolist() == [[1, 3, len(SPECIAL) + 257, 4, *answer]]
    assert batch["labels"].tolist() == [[-100] * 4 + answer]
