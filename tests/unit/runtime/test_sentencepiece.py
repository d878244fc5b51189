"""Models whose vocabulary is a SentencePiece model, `tokenizer.model`, as Llama 2 and Gemma have it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece
from transformers import CLIPImageProcessorPil, LlamaConfig, LlavaProcessor

from lingu_ray.config import TeacherConfig
from lingu_ray.corpus.processor import run_processor
from lingu_ray.errors import UserError
from lingu_ray.processors import read_tokenizer, write_processor
from lingu_ray.runtime.models.load import load_teacher_tokenizer

TEXT = "the cat sat on the mat"


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """A Llama without weights whose tokenizer is `tokenizer.model` and its class."""
    folder, text = tmp_path / "teacher", tmp_path / "text"
    LlamaConfig(vocab_size=280).save_pretrained(folder)
    text.write_text(f"{TEXT}\n" * 40, encoding="utf-8")
    options = {"model_type": "bpe", "byte_fallback": True, "vocab_size": 280, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(input=str(text), model_prefix=str(folder / "tokenizer"), **options)
    named: dict[str, str | bool] = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(named), encoding="utf-8")
    return folder


def expected(folder: Path) -> list[int]:
    """What SentencePiece itself makes of the text, behind BOS."""
    return [1, *sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).encode(TEXT)]


def test_its_class_says_how_texts_begin(teacher: Path) -> None:
    """Without it Transformers adds neither BOS nor a space: other tokens than the model knows, so it is refused."""
    settings = TeacherConfig(path=str(teacher))
    assert load_teacher_tokenizer(settings)(TEXT)["input_ids"] == expected(teacher)
    (teacher / "tokenizer_config.json").unlink()
    with pytest.raises(
        UserError, match=r"teacher\.path: its tokenizer .*tokenizer\.model says .* tokenizer_config\.json"
    ):
        load_teacher_tokenizer(settings)


def test_the_model_goes_with_the_processor(teacher: Path, tmp_path: Path) -> None:
    """Into a run's initial model, and from there into its export, where converters for other programs look for it."""
    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    processor = LlavaProcessor(images, read_tokenizer(str(teacher)), patch_size=4)
    for name in ("initial_model", "export"):
        write_processor(processor, tmp_path / name)
        processor = run_processor(tmp_path / name, trust_remote_code=False)
        assert (tmp_path / name / "tokenizer.model").read_bytes() == (teacher / "tokenizer.model").read_bytes()
        assert processor.tokenizer(TEXT)["input_ids"] == expected(teacher)
