"""The first items of each task with every model's answer, from the kept items."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lingu_ray.evaluation.items import SAMPLE, first_items
from lingu_ray.evaluation.metrics.metric import Columns

PER_TASK = 4


@dataclass(frozen=True)
class Answered:
    """One item: what was asked (pictures as `data:` addresses), what was expected, and what each model said."""

    task: str
    asked: str
    images: list[str]
    expected: str
    said: dict[str, str]


def answered(out_dir: Path, tasks: dict[str, Any]) -> list[Answered]:
    """Items of the tasks of `recovery.json`; a task of likelihoods alone (perplexity) has no answers to show."""
    return [one for name, task in tasks.items() for one in _of_task(out_dir, name, list(task["models"]))]


def _of_task(out_dir: Path, task: str, models: list[str]) -> list[Answered]:
    items = {model: columns for model in models if (columns := first_items(out_dir, task, model, PER_TASK)) is not None}
    first = next(iter(items.values()), {})
    if not ("prediction" in first or "gold" in first) or SAMPLE not in first:
        return []
    return [
        Answered(
            task,
            first[SAMPLE][place]["asked"],
            [f"data:image/jpeg;base64,{base64.b64encode(image).decode()}" for image in first[SAMPLE][place]["images"]],
            _expected(first, place),
            {model: _said(columns, place) for model, columns in items.items()},
        )
        for place in range(len(first[SAMPLE]))
    ]


def _expected(columns: Columns, place: int) -> str:
    if "answers" in columns:
        return " / ".join(dict.fromkeys(columns["answers"][place]))
    if "gold" not in columns:  # judged by a task of lm-evaluation-harness
        return ""
    options, gold = _options(columns, place), columns["gold"][place]
    return options[gold] if options else str(gold)


def _said(columns: Columns, place: int) -> str:
    if "prediction" in columns:
        return columns["prediction"][place]
    return _options(columns, place)[int(np.argmax(columns["logliks"][place]))]


def _options(columns: Columns, place: int) -> list[str]:
    """Letters' meanings, or the texts that were scored."""
    if "choices" in columns:
        return columns["choices"][place]
    return [option.strip() for option in columns[SAMPLE][place]["options"]]
