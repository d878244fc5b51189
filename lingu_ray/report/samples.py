"""The first items of each evaluation task with every model's answer, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lingu_ray.evaluation.item_files import SAMPLE, first_items
from lingu_ray.evaluation.metrics.likelihood import chosen
from lingu_ray.evaluation.metrics.metric import Columns
from lingu_ray.evaluation.results import Recovery, TaskScores
from lingu_ray.evaluation.roles import DISTILLED
from lingu_ray.evaluation.tasks.blind import without_placeholders
from lingu_ray.evaluation.thumbnail import data_uri
from lingu_ray.report.plots import display_name

PER_TASK = 4


@dataclass(frozen=True)
class Answered:
    """A question of a task or source (`origin`) with its answers. `images`: `data:` URLs; `answers`: by heading."""

    origin: str
    asked: str
    images: list[str]
    expected: str
    answers: dict[str, str]


@dataclass(frozen=True)
class Answers:
    """Questions with their answers, the headings of the answers, and the run's own heading (`ours`)."""

    rows: list[Answered]
    headings: list[str]
    ours: str


def answered(out_dir: Path, result: Recovery) -> Answers:
    """The first items of each task; a task of likelihoods alone (perplexity) has no answers to show."""
    rows = [one for name, task in result.tasks.items() for one in _of_task(out_dir, name, task)]
    return Answers(rows, [display_name(model) for model in result.measured], display_name(DISTILLED))


def _of_task(out_dir: Path, name: str, task: TaskScores) -> list[Answered]:
    found = {model: first_items(out_dir, name, model, PER_TASK) for model in task.models}
    items = {model: columns for model, columns in found.items() if columns is not None}
    first = next(iter(items.values()), {})
    if not ("prediction" in first or "gold" in first) or SAMPLE not in first:
        return []
    return [
        Answered(
            name,
            without_placeholders(first[SAMPLE][place]["asked"]),
            [data_uri(image) for image in first[SAMPLE][place]["images"]],
            _expected(first, place),
            {display_name(model): _answer(columns, place, task.metric) for model, columns in items.items()},
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


def _answer(columns: Columns, place: int, metric: str) -> str:
    if "prediction" in columns:
        return columns["prediction"][place]
    return _options(columns, place)[chosen(columns, metric)[place]]


def _options(columns: Columns, place: int) -> list[str]:
    """The answers to choose from: those behind the letters, or the texts that were scored."""
    if "choices" in columns:
        return columns["choices"][place]
    return [option.strip() for option in columns[SAMPLE][place]["options"]]
