"""Tokens as text: nothing is lost, and what is invisible can be seen."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from processors import PROCESSORS, processor_of
from tiny import picture, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from lingu_ray.config import Config
from lingu_ray.corpus.encode import Encoder
from lingu_ray.corpus.row import Row
from lingu_ray.preview.roles import Judge
from lingu_ray.preview.tokens import PART, segments, token_texts, visible

tokenizer = cache(tiny_tokenizer)


@cache
def of_bytes() -> PreTrainedTokenizerFast:
    """A tokenizer in the way of SentencePiece: `▁` for spaces, the first of which is dropped, and byte fallback."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abc", "▁a", "bc"]
    vocabulary = {piece: id for id, piece in enumerate(pieces)}
    merges = [("▁", "a"), ("b", "c")]
    core = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core)


@pytest.mark.parametrize("make", [tokenizer, of_bytes])
@given(text=st.text(st.characters(exclude_characters=f"{PART}▁\ufffd", exclude_categories=["Cs"]), max_size=40))
def test_texts_of_tokens_make_up_the_text(make: Callable[[], PreTrainedTokenizerFast], text: str) -> None:
    """Joined they are the decoded text, also where a character is made of several tokens."""
    ids = make()(text)["input_ids"]
    texts = list(token_texts(ids, make()))
    assert "".join(piece for piece in texts if piece != PART) == make().decode(ids)
    assert len(texts) == len(ids)


def test_a_character_stands_at_the_token_that_completes_it() -> None:
    """Those before it are parts; a token whose text is dropped has none."""
    ids = of_bytes()("abc 你a好")["input_ids"]
    assert list(token_texts(ids, of_bytes())) == ["a", "bc", " ", PART, PART, "你", "a", PART, PART, "好"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text", "plain text"),
        ("a  b", "a··b"),
        (" ", "·"),
        ("end \n\n next", "end·⏎\n⏎\n·next"),
        ("a\tb", "a⇥b"),
        ("\x1b[31mred\r", "\\x1b[31mred\\r"),
        ("no\u200bwidth\u202e\xa0", "no\\u200bwidth\\u202e\\xa0"),
        ("naïve 你好 🦊", "naïve 你好 🦊"),
    ],
)
def test_what_is_invisible_can_be_seen(text: str, shown: str) -> None:
    """Line breaks, tabs, easily missed spaces; no control character reaches a terminal."""
    assert visible(text) == shown


def judge(policy: str = "all", **source: Any) -> Judge:
    """A judge of a text source named `words`."""
    config = Config.model_validate(
        {
            "name": "x",
            "student": {"path": "owner/vlm"},
            "teacher": {"path": "owner/lm"},
            "distill": {"policy": policy},
            "corpus": {"sources": [{"name": "words", "format": "messages", "path": "x.jsonl"} | source]},
        }
    )
    return Judge(config, config.corpus.sources[0], teacher_vocabulary=320)


@pytest.mark.parametrize("family", PROCESSORS)
def test_segments_hold_every_token_once(family: str) -> None:
    """Of each family's row with an image: ids in order, image tokens folded, learned ones with their weights."""
    encoder = Encoder(processor_of(family), 512)
    messages = [{"role": "user", "content": "<image>What  is it?"}, {"role": "assistant", "content": "A stop sign."}]
    sample = encoder.encode(Row("words", 0, messages, [picture()], True))
    shown = segments(sample, sample, judge(ce_weight=2, kd_weight=0.5), encoder.tokenizer)
    pieces = [piece for segment in shown for piece in segment.pieces]
    assert [id for piece in pieces for id in [piece.id] * piece.count] == sample.input_ids_T.tolist()
    assert sum(piece.count for piece in pieces if f"×{piece.count}" in piece.text) == int(sample.visual_T.sum()) > 0
    learned = [segment for segment in shown if segment.role.learned]
    assert sum(s.tokens for s in learned) == int(sample.supervised_T.sum())
    assert {segment.role.learned for segment in learned if segment.role.key == "kd"} == {"CE × 2 + KD × 0.5"}
    text = "".join(piece.text for segment in learned for piece in segment.pieces)
    assert text.lstrip("·").startswith("A stop sign.") and pieces[-1].special


def test_what_is_left_out_is_a_segment_of_its_own() -> None:
    """After the sample's tokens stand those that were cut, whatever they are for in the whole row."""
    turns = ("Count.", "one " * 30, "<image>And this?", "two ")
    messages = [{"role": "assistant" if i % 2 else "user", "content": turn} for i, turn in enumerate(turns)]
    row = Row("words", 0, messages, [picture()], True)
    sample, whole = (Encoder(processor_of("idefics3"), length).encode(row) for length in (40, 512))
    *trained, last = segments(sample, whole, judge("none"), tokenizer())
    assert [segment.role.label for segment in trained] == ["prompt", "CE"]
    assert sum(segment.tokens for segment in trained) == 40
    assert last.role.label == "left out" and last.tokens == len(whole) - 40
    visual = int(whole.visual_T.sum())
    assert sum(piece.count for piece in last.pieces if piece.text == f"<image>×{piece.count}") == visual > 0
