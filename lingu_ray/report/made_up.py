"""Small made-up records and results with a real run's names of sources, tasks and models, for the rehearsal."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

import lingu_ray
from lingu_ray.atomic import write_json, write_text
from lingu_ray.config import Config, EvaluationConfig, TaskConfig
from lingu_ray.config.command_line import to_yaml
from lingu_ray.corpus.row import PLACEHOLDER
from lingu_ray.corpus.store import ROW_SCHEMA, write_rows
from lingu_ray.evaluation.item_files import SAMPLE, items_path, write_items
from lingu_ray.evaluation.recovery_json import write_recovery
from lingu_ray.evaluation.results import (
    Blind,
    Constant,
    Estimate,
    Interval,
    Means,
    ModelScore,
    QuotientName,
    Recovery,
    TaskScores,
)
from lingu_ray.evaluation.roles import DISTILLED, TEACHER, compared_models, compared_with, references_among
from lingu_ray.evaluation.tasks.judging import METRICS
from lingu_ray.evaluation.verdict import judge
from lingu_ray.runtime.controls import control_configs
from lingu_ray.runtime.run_folder.folder import RunFolder
from lingu_ray.runtime.run_folder.records import JsonLines

_FOUND = Estimate(0.5, Interval(0.4, 0.6))
_POINTS = Estimate(20.0, Interval(10.0, 30.0))
_MEANS = Means(_FOUND, _FOUND)


def write_run(config: Config) -> Recovery | None:
    """Write what a short training and evaluation leave in the folders of a run and its controls; returns the result.

    None without evaluation tasks.
    """
    folder, controls = RunFolder(config.run_dir), control_configs(config)
    corpus = folder.root / "corpus"
    _write_corpus(config, corpus)
    for run in (config, *controls.values()):
        of_run = RunFolder(run.run_dir)
        of_run.export.mkdir(parents=True)
        write_text(of_run.config, to_yaml(run))
        write_json(of_run.environment, {"lingu_ray": lingu_ray.__version__})
        write_json(of_run.corpus, {"path": str(corpus)})
        _write_records(run, of_run)
        if run.align is not None:
            write_json(of_run.alignment, _alignment(run))
    if not config.evaluation.tasks:
        return None
    exports = {name: RunFolder(control.run_dir).export for name, control in controls.items()}
    models = list(compared_models(config, folder.export, exports))
    return write_result(config.evaluation, models, folder.report)


def write_result(settings: EvaluationConfig, models: Sequence[str], out_dir: Path) -> Recovery:
    """Write `recovery.json` and items of these models on the task with the longest name; returns the result.

    On one task only, since a task takes as long to draw as all the rest.
    """
    task = max(settings.tasks, key=lambda task: len(task.name))
    result = _result(settings, task, models)
    write_recovery(result, out_dir)
    _write_items(out_dir, task.name, max(result.tasks[task.name].models, key=len))
    return result


def _result(settings: EvaluationConfig, task: TaskConfig, models: Sequence[str]) -> Recovery:
    references = references_among(models)
    tasks = {task.name: _scores(settings, task, models)}
    over = dict.fromkeys(compared_with(models, references), _MEANS)
    floors: dict[QuotientName, float] = {"recovery": settings.min_recovery, "retention": settings.min_retention}
    verdict = judge(tasks, _MEANS, over, floors, {}, models, references)
    return Recovery(tasks, _MEANS, dict.fromkeys(models, _MEANS), over, {}, references, verdict)


def _scores(settings: EvaluationConfig, task: TaskConfig, models: Sequence[str]) -> TaskScores:
    """The same score for every model; on a vision task for all but the teacher."""
    metric = METRICS[task.type]
    own = [model for model in models if task.kind == "language" or model != TEACHER] or list(models)
    made_up = TaskScores(
        kind=task.kind,
        metric=task.metric or metric.name,
        higher_is_better=metric.higher_is_better,
        is_share=metric.share,
        items=1,
        clusters=1,
        models={model: ModelScore(_FOUND if metric.share else _POINTS, {}, _FOUND, cut_off=0.5) for model in own},
        distilled=_FOUND,
        reason=None,
        floor=0.9,
        in_mean=task.in_mean,
        limit=task.limit,
        over={model: _FOUND for model in own if DISTILLED in own and model != DISTILLED},
    )
    blind = settings.blind and task.kind == "vision"
    every = dict.fromkeys(own, _FOUND)
    return replace(
        made_up,
        nats=made_up if metric.nats else None,
        blind=Blind(every, every, dict.fromkeys(every, 0.5)) if blind else None,
        constant=Constant("yes", _FOUND, every) if task.kind == "vision" else None,
    )


def _write_items(out_dir: Path, task: str, model: str) -> None:
    sample = {"asked": f"{PLACEHOLDER}?", "images": [_picture("JPEG")]}
    columns = {"item": ["1"], "prediction": ["made up"], "answers": [["made up"]], SAMPLE: [sample]}
    write_items(items_path(out_dir, task, model), columns, None)


def _write_corpus(config: Config, folder: Path) -> None:
    """A manifest in which each source has two rows, one of them held out with a picture."""
    sources = [source.name for source in config.training_sources()]
    counts = {"read": 2, "accepted": 2, "rejected": {}, "truncated": 0, "validation": 1, "used": 1}
    write_json(folder / "manifest.json", {"rows": len(sources), "sources": dict.fromkeys(sources, counts)})
    rows = [
        {"source": name, "position": 0, "messages": [], "images": [_picture("PNG")], "distill": False}
        for name in sources
    ]
    write_rows(pa.Table.from_pylist(rows, ROW_SCHEMA), folder / "validation.parquet")


def _alignment(config: Config) -> dict[str, Any]:
    shares = {"answers": 2, "before": 0.0, "after": 1.0, "blind": 0.5}
    held_out = {source.name: shares for source in config.training_sources()}
    return {"rows": 2, "pictures": 2, "answers": 2, "left_out": {"made up": 1}, "held_out": held_out, "seconds": 1.0}


def _write_records(config: Config, folder: RunFolder) -> None:
    metrics, samples = JsonLines(folder.metrics), JsonLines(folder.samples)
    sources = [source.name for source in config.training_sources()]
    for step in (1, 2):
        loss = {"loss": 1.0, "ce": 1.0, "kd": None}  # KD would be drawn by the same code as CE
        speed = {"tokens": 1, "tokens_per_s": 1.0, "step_s": 1.0, "data_wait": 0.0, "teacher_wait": 0.0}
        metrics.append({"step": step, **loss, **speed})
        metrics.append({"step": step, "validation": {name: {"ce": 1.0, "tokens": 1} for name in sources}})
    for name in sources:
        asked = {"source": name, "position": 0, "question": f"{PLACEHOLDER}?", "expected": "this"}
        samples.append({"step": 2, **asked, "answer": "that"})


def _picture(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, kind)
    return buffer.getvalue()
