"""A complete run in miniature: a tiny pair on disk, a text and a picture source, and settings that train on them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from tiny import picture, tiny_student, tiny_teacher

from lingu_ray.config import Config

NEW_STUDENT = {
    "path": None,
    "from_teacher": {
        "image_size": 32, "patch_size": 8, "hidden_size": 32, "intermediate_size": 64, "layers": 1, "heads": 2,
        "pixel_shuffle": 2,
    },
}  # fmt: skip
"""Settings of `student` for a tiny VLM that is made of the teacher."""


def write_pair_and_data(folder: Path) -> None:
    """Teacher, student, 80 language-heavy texts and 40 vision-heavy picture questions."""
    for name, content in _pair_and_data().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@cache
def _pair_and_data() -> dict[str, bytes]:
    """The files by name: to make them takes longer than to write them."""
    with TemporaryDirectory() as temporary:
        _make_pair_and_data(folder := Path(temporary))
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _make_pair_and_data(folder: Path) -> None:
    tiny_student(tiny_teacher(folder=folder / "teacher"), folder=folder / "student")
    words = " ".join(topics[name] for name in sorted(topics)[:30]).split()
    with (folder / "text.jsonl").open("w") as file:
        for i in range(80):
            passage = words[i * 40 : i * 40 + 30]
            record = {"prompt": " ".join(passage[:12]), "completion": " ".join(passage[12 : 14 + i % 16])}
            file.write(json.dumps(record) + "\n")
    with (folder / "pictures.jsonl").open("w") as file:
        for i in range(40):
            (folder / f"{i}.png").write_bytes(picture(i))
            file.write(json.dumps({"image": f"{i}.png", "label": "even" if i % 2 == 0 else "odd"}) + "\n")


def settings(data: Path, output_dir: Path | str, **overrides: Any) -> dict[str, Any]:
    """Settings of a run of 8 steps; `overrides` replace keys of sections: `train={"steps": 4}`."""
    tree: dict[str, Any] = {
        "name": "tiny",
        "output_dir": str(output_dir),
        "student": {"path": str(data / "student")},
        "teacher": {"path": str(data / "teacher")},
        "corpus": {
            "max_length": 160,
            "validation_rows": 4,
            "sources": [
                {
                    "name": "text",
                    "format": "prompt_completion",
                    "path": str(data / "text.jsonl"),
                    "language_heavy": True,
                    "weight": 0.6,
                },
                {
                    "name": "pictures",
                    "format": "template",
                    "path": str(data / "pictures.jsonl"),
                    "image": "image",
                    "prompt": "<image>Even or odd?",
                    "answer": "It is {label}.",
                    "weight": 0.4,
                },
            ],
        },
        "train": {
            "steps": 8,
            "rows_per_step": 6,
            "tokens_per_micro_batch": 320,
            "learning_rates": {"vision": 1e-4, "projector": 1e-3, "decoder": 1e-3},
            "validate_every": 4,
            "sample_every": 4,
            "samples": 2,
            "checkpoint_every": 4,
        },
        "ray": {"cpus_per_worker": 0.5, "threads_per_worker": 1, "max_failures": 1},
        "tracking": {"system_metrics": False},
    }
    for name, value in overrides.items():
        tree[name] = tree.get(name, {}) | value if isinstance(value, dict) else value
    return tree


def config(data: Path, output_dir: Path | str, **overrides: Any) -> Config:
    """The settings, validated."""
    return Config.model_validate(settings(data, output_dir, **overrides))


def write_settings(path: Path, data: Path, output_dir: Path, **overrides: Any) -> Path:
    """The settings as a YAML file, for the command line."""
    path.write_text(yaml.safe_dump(settings(data, output_dir, **overrides)), encoding="utf-8")
    return path


def workers_started() -> int:
    """How many training workers this Ray has had, dead ones included."""
    return actors_started("RayTrainWorker")


def actors_started(kind: str) -> int:
    """How many actors of that class this Ray has had, dead ones included."""
    from ray._private.state import actors

    return sum(actor["ActorClassName"] == kind for actor in actors().values())
