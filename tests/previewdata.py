"""Data to look at: three sources, good rows and bad, and settings on them with a pair that has no weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tiny import picture, tiny_processor, tiny_teacher

from lingu_ray.config import Config


def say(*turns: str) -> list[dict[str, str]]:
    """A conversation of these turns."""
    return [{"role": "assistant" if i % 2 else "user", "content": turn} for i, turn in enumerate(turns)]


def chat_lines() -> list[str]:
    """Thirty-three conversations: with two pictures, cut in its answer (3), hostile (5), and bad (2, 4, 6, 7)."""
    conversations: list[Any] = [
        {"messages": say("<image>What?", "A <b>cat</b>.", "And <image>?", "A dog."), "images": ["a.png", "b.png"]},
        {"messages": say("Hello", " ")},
        {"messages": say("Long?", "one " * 100)},
        "{broken",
        {"messages": say("\x1b[31m<script>alert(1)</script>", "It is text.")},
        {"messages": say("<image>gone", "no image"), "images": ["nowhere.png"]},
        {"messages": say("x " * 200, "Too long a prompt.")},
        {"messages": say("<image>", "Only a picture."), "images": ["a.png"]},
        *({"messages": say(f"Count to {i}.", "one " * i)} for i in range(1, 26)),
    ]
    return [line if isinstance(line, str) else json.dumps(line) for line in conversations]


def write_preview_data(folder: Path) -> None:
    """Write `chat.jsonl`, `book.txt`, `pictures.jsonl`, and a student and teacher without weights."""
    for name in "ab":
        (folder / f"{name}.png").write_bytes(picture(ord(name), size=(48, 32)))
    (folder / "chat.jsonl").write_text("\n".join(chat_lines()) + "\n")
    (folder / "book.txt").write_text(" ".join(f"word{i}" for i in range(200)))
    pictures = [{"file": "ab"[i % 2] + ".png", "label": str(i)} for i in range(20)]
    (folder / "pictures.jsonl").write_text("".join(json.dumps(record) + "\n" for record in pictures))
    tiny_teacher(folder=folder / "teacher")
    (folder / "teacher" / "model.safetensors").unlink()
    tiny_processor(folder / "student")


def preview_settings(folder: Path, **corpus: Any) -> dict[str, Any]:
    """Settings of a run on that data."""
    sources = [
        {"name": "chat", "format": "messages", "path": str(folder / "chat.jsonl"), "language_heavy": True},
        {"name": "book", "format": "text", "path": str(folder / "book.txt"), "prompt_words": 4, "answer_words": 6},
        {
            "name": "pictures",
            "format": "template",
            "path": str(folder / "pictures.jsonl"),
            "image": "file",
            "prompt": "<image>Which?",
            "answer": "It is {label}.",
        },
    ]
    return {
        "name": "mine",
        "output_dir": str(folder / "runs"),
        "student": {"path": str(folder / "student")},
        "teacher": {"path": str(folder / "teacher")},
        "corpus": {"max_length": 100, "validation_rows": 2, "max_reject_rate": 0.5, "sources": sources} | corpus,
    }


def preview_config(folder: Path, **corpus: Any) -> Config:
    """The settings, validated."""
    return Config.model_validate(preview_settings(folder, **corpus))
