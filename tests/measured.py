"""Items as an evaluation keeps them, made from the scores that they shall be judged with."""

from __future__ import annotations

from pathlib import Path

from lingu_ray.config import TaskConfig
from lingu_ray.evaluation.item_files import items_path, write_items
from lingu_ray.evaluation.metrics.metric import Columns


def write_measured(
    out_dir: Path, task: TaskConfig, model: str, score: list[float], weight: list[float] | None = None
) -> None:
    """Write a model's answers to a task: right or wrong ones, or nats (`score`) over tokens (`weight`)."""
    weight = weight or [1.0] * len(score)
    columns: Columns = {"item": [str(number) for number in range(1, len(score) + 1)]}
    if task.type == "multiple_choice":
        columns |= {"logliks": [[s - 0.5, 0.0] for s in score], "gold": [0] * len(score)}
        columns |= {"lengths": [[1, 1]] * len(score)}
    elif task.type == "perplexity":
        columns |= {"logliks": [[-s] for s in score], "tokens": [[int(w)] for w in weight]}
    else:
        answers = [f"right {number}" for number in columns["item"]]  # others each, which no one answer hits
        columns |= {"prediction": [a if s else "wrong" for s, a in zip(score, answers, strict=True)]}
        columns |= {"answers": [[answer] for answer in answers]}
    write_items(items_path(out_dir, task.name, model), columns, None)
