"""The commands of `lingu-ray`, and how they are called in messages. Light to import: no torch, Ray or MLflow."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path


@dataclass(frozen=True)
class Command:
    """A module with a `main(arguments)`, and what it does in one line."""

    module: str
    summary: str


COMMANDS = {
    "train": Command("lingu_ray.train", "train a run: corpus, distillation, controls, evaluation, report"),
    "inspect": Command("lingu_ray.inspect", "look at data before training: rows token by token, what is rejected"),
    "probe": Command("lingu_ray.probe", "ask the teacher before training what it knows of your answers, and by what"),
    "estimate": Command("lingu_ray.estimate", "memory and time of a run before it is started, and whether it fits"),
    "doctor": Command("lingu_ray.doctor", "check a machine or a cluster before a run, and say what to do"),
    "evaluate": Command("lingu_ray.evaluate", "measure models on language and vision tasks"),
    "chat": Command("lingu_ray.chat", "talk to a model in the terminal, about images too"),
    "export": Command("lingu_ray.export", "export a checkpoint of a run that was stopped, or still trains"),
    "sweep": Command("tuning.sweep", "search for the best settings with Ray Tune"),
    "compare": Command("tuning.compare", "compare runs: scores, settings that differ, curves"),
    "merge": Command("lingu_ray.merge", "merge a VLM's decoder with its original LM: the baseline without training"),
    "convert-gguf": Command("lingu_ray.convert_gguf", "convert a GGUF file to a Hugging Face folder"),
    "convert-dinov2": Command("lingu_ray.convert_dinov2", "convert a DINOv2 in an ONNX file to a Hugging Face folder"),
    "convert-nanovlm": Command("lingu_ray.convert_nanovlm", "convert a nanoVLM checkpoint to a Hugging Face folder"),
    "schema": Command("lingu_ray.schema", "print the JSON schema of a settings file, for editors"),
    "guide": Command("lingu_ray.guide", "read the guide: settings, data formats, variants, resuming, trouble"),
}


def as_called(text: str) -> str:
    """A text whose commands read `lingu-ray train` in place of `python -m lingu_ray.train`, if called that way."""
    program = Path(sys.argv[0])
    if program.name != "lingu-ray" and program.parts[-2:] != ("lingu_ray", "__main__.py"):
        return text
    modules = {command.module: name for name, command in COMMANDS.items()}
    pattern = "|".join(map(re.escape, modules))
    return re.sub(rf"python -m ({pattern})\b", lambda found: f"lingu-ray {modules[found[1]]}", text)


def shipped(package: str, folder: str) -> dict[str, str]:
    """Name of every YAML file in a package's folder, with the first line of its comment."""
    texts = {p.name: p.read_text("utf-8") for p in (files(package) / folder).iterdir() if p.name.endswith(".yaml")}
    return {name.removesuffix(".yaml"): texts[name].split("\n", 1)[0].lstrip("# ") for name in sorted(texts)}


def recipes() -> dict[str, str]:
    """Name of every recipe in the package, with the first line of its comment."""
    return shipped("lingu_ray", "recipes")


def guide_path() -> Path:
    """The guide's file: `docs/guide.md`, which the package carries."""
    return Path(str(files("lingu_ray") / "guide.md"))
