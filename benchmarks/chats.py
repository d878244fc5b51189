"""Real models and rows for benchmarks of numerical differences: chats about Python's own reference text."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image

from lingu_ray.config import Config
from lingu_ray.config.command_line import read_recipe
from lingu_ray.corpus.encode import Encoder, Sample
from lingu_ray.corpus.row import Message, Row
from lingu_ray.demo.chats import Chat, passage_chats
from lingu_ray.demo.text import Documents, read_documents, split
from lingu_ray.runtime.models.load import load_processor, prepare_student

Kind = Literal["text", "images", "turns"]
TOWER = {"image_size": 256, "hidden_size": 384, "intermediate_size": 1536, "layers": 8, "heads": 6}  # random
TURNS = 3  # chats of a row of `turns`, one after another


def pair_config(teacher: str, student: str | None, folder: Path) -> Config:
    """Settings of a float32 run that distills every kind of row.

    Without `student` a new VLM on the teacher, with the tower `TOWER`, is written to `folder`.
    """
    recipe = read_recipe("smollm2-135m-adapt")
    sources = [{"name": kind, "format": "text", "path": "made here", "language_heavy": True} for kind in get_args(Kind)]
    recipe.put("corpus.sources", sources, __name__)
    recipe.put("distill.policy", "selective", __name__)
    recipe.put("train.precision", "fp32", __name__)
    recipe.put("teacher.path", teacher, __name__)
    if student is None:
        recipe.put("student.from_teacher", TOWER, __name__)
        recipe.put("train.learning_rates.vision", 1e-4, __name__)
        prepare_student(recipe.validate(), folder)
    recipe.put("student", {"path": student or str(folder)}, __name__)
    return recipe.validate()


def chat_rows(kind: Kind, count: int, part: str = "distillation") -> list[Row]:
    """Rows of `count` chats from a part of the demo's text (see `demo.text.SHARES`), with one or `TURNS` chats each.

    The picture of `images` is noise: here only its KV counts, and that the question comes after it.
    """
    size = TURNS if kind == "turns" else 1
    chats = passage_chats(_documents()[part], seed=0)[:count]
    groups = [chats[begin : begin + size] for begin in range(0, len(chats), size)]
    picture = kind == "images"
    return [Row(kind, i, _messages(group, picture), [_noise(i)] * picture, True) for i, group in enumerate(groups)]


def encode(config: Config, rows: list[Row]) -> tuple[list[Sample], int]:
    """The rows as samples of the student's processor, and the id to pad them with."""
    encoder = Encoder(load_processor(config.student), config.corpus.max_length)
    return [encoder.encode(row) for row in rows], encoder.pad_id


@cache
def _documents() -> dict[str, Documents]:
    """The demo's text by part, cached, since reading takes seconds."""
    return split(read_documents())


def _messages(chats: list[Chat], picture: bool) -> list[Message]:
    messages: list[Message] = [message for chat in chats for message in chat.messages()]
    return [messages[0] | {"content": f"<image>{messages[0]['content']}"}, *messages[1:]] if picture else messages


def _noise(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(256, size=(64, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()
