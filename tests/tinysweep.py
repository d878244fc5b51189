"""What a sweep in miniature needs beside `tinyrun`: an adapted student that lost something, and tasks that measure it.

The right choices of the language task are the teacher's own, so that it scores 100 % and the adapted student less; the
right answers of the vision task are the adapted student's own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from tiny import tiny_student
from tinyrun import settings
from transformers import LlamaForCausalLM

from lingu_ray.evaluation.engines.engine import GenerateRequest, ScoreRequest
from lingu_ray.evaluation.engines.transformers_engine import TransformersEngine
from lingu_ray.evaluation.metrics.short_answers import normalize


def write_adapted_and_tasks(data: Path) -> None:
    """`adapted/`: the student with a disturbed decoder; `choices.jsonl` and `questions.jsonl`."""
    disturbed = LlamaForCausalLM.from_pretrained(data / "teacher")
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in disturbed.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5 * parameter.std())
    tiny_student(disturbed.eval(), folder=data / "adapted")
    _write(data / "choices.jsonl", _choices(data))
    _write(data / "questions.jsonl", _questions(data))


def _choices(data: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (data / "text.jsonl").read_text().splitlines()]
    queries = [record["prompt"] for record in records[:48]]
    options = [record["completion"].split()[:3] for record in records]
    choices = [[" ".join(options[(i + k) % len(options)]) for k in range(4)] for i in range(len(queries))]
    pairs = [ScoreRequest(q, " " + c) for q, cs in zip(queries, choices, strict=True) for c in cs]
    scores = TransformersEngine(data / "teacher", 4096).loglikelihoods(pairs)
    best = np.array([score.loglik for score in scores]).reshape(-1, 4).argmax(1)
    return [{"query": q, "choices": c, "gold": int(g)} for q, c, g in zip(queries, choices, best, strict=True)]


def _questions(data: Path) -> list[dict[str, Any]]:
    requests = [
        GenerateRequest("<image>Even or odd?", ((data / f"{i}.png").read_bytes(),), max_new_tokens=4) for i in range(24)
    ]
    answers = TransformersEngine(data / "adapted", 4096).generate(requests)
    found = [(i, answer.text) for i, answer in enumerate(answers) if normalize(answer.text)]
    return [{"question": "<image>Even or odd?", "answer": answer, "image": f"{i}.png"} for i, answer in found]


def _write(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def write_base(path: Path, data: Path, output_dir: Path | str, **overrides: Any) -> Path:
    """The recipe that a tiny sweep starts from: `tinyrun`'s, on the adapted student, with tasks."""
    tasks = [
        {"name": "choices", "kind": "language", "type": "multiple_choice", "path": str(data / "choices.jsonl")},
        {"name": "questions", "kind": "vision", "type": "exact_match", "path": str(data / "questions.jsonl")}
        | {"max_new_tokens": 4},
    ]
    tree = settings(
        data, output_dir, evaluation={"tasks": tasks, "bootstrap": 200, "engine": "transformers"}, **overrides
    )
    tree["student"] = {"path": str(data / "adapted")}
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def write_space(path: Path, base: Path, **keys: Any) -> Path:
    """A space of three weights of KD."""
    tree = {"name": "sweep", "base": str(base), "search": {"distill.w_kd": {"grid": [0.5, 1, 2]}}} | keys
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path
