"""A run's report: one self-contained HTML page, and its figures as PNG files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import median
from typing import Any

import jinja2
from markupsafe import Markup

from lingu_ray.config import Config, strict_yaml
from lingu_ray.config.command_line import load_yaml
from lingu_ray.evaluation.recovery import ADAPTED, CE_ONLY, DISTILLED, percent
from lingu_ray.report.command import evaluate_command
from lingu_ray.report.held_out import held_out_answers
from lingu_ray.report.loss_plots import loss_panels, plot_loss
from lingu_ray.report.plots import Panel, display_name, format_number, model_colors, models_of
from lingu_ray.report.samples import answered
from lingu_ray.report.score_plots import plot_recovery, recovery_panels
from lingu_ray.report.sources import trained_sources
from lingu_ray.runtime.folder import RunFolder
from lingu_ray.runtime.metrics import Record, read_records


def write_report(run_dir: Path) -> Path:
    """Write `report/report.html`, `loss.png` and `recovery.png` from what the run's folder holds; the page's path.

    Read where they exist: config.yaml, metrics.jsonl, samples.jsonl, corpus.json (and the corpus it points to),
    report/recovery.json, and metrics and samples of the control. What is missing is left out of the page.
    """
    run = RunFolder(run_dir)
    run.report.mkdir(parents=True, exist_ok=True)
    config = load_yaml(run.config) if run.config.exists() else None
    runs, counts, records = _trained(run, config), manifest(run_dir), read_records(run.metrics)
    samples = {model: read_records(folder.samples) for model, folder in runs.items()}
    panels = loss_panels({model: read_records(folder.metrics) for model, folder in runs.items()})
    if panels:
        plot_loss(panels, run.report / "loss.png")
    page = _render(
        "report.html",
        run.report,
        name=run_dir.resolve().name,
        result=_json(run.report / "recovery.json"),
        command=evaluate_command(config, run) if config and run.export.exists() else None,
        losses=svgs(panels),
        settings=_settings(run.config),
        sources=trained_sources(config, counts, _steps(records)) if config and counts else [],
        throughput=throughput(records),
        held_out=held_out_answers(samples, _corpus(run)),
    )
    return _written(page, run.report)


def write_evaluation(result: dict[str, Any], out_dir: Path) -> Path:
    """Write `report.html` and `recovery.png` of an evaluation that belongs to no run; the page's path."""
    page = _render("evaluation.html", out_dir, name=out_dir.resolve().name, result=result)
    return _written(page, out_dir)


def _render(template: str, folder: Path, result: dict[str, Any] | None, **values: Any) -> str:
    """A page on the result, whose items lie in `folder`; `recovery.png` beside it."""
    if result is not None:
        plot_recovery(result, folder / "recovery.png")
        values["scores"] = svgs(recovery_panels(result))
        values["colors"] = model_colors(models_of(result))
        values["answers"] = answered(folder, result)
    return environment().get_template(template).render(result=result, **values)


def _written(page: str, folder: Path) -> Path:
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _trained(run: RunFolder, config: Config | None) -> dict[str, RunFolder]:
    """The run and, where there is one, its control, by the names under which their models are compared."""
    alone = config is not None and config.distill.policy == "none"
    new = config is not None and config.student.path is None  # its control is what plain adaptation makes of it
    runs = {CE_ONLY if alone else DISTILLED: run}
    control = RunFolder(run.root / "control")
    if control.metrics.exists():
        runs.setdefault(ADAPTED if new else CE_ONLY, control)
    return runs


def _corpus(run: RunFolder) -> Path | None:
    pointer = _json(run.corpus)
    return None if pointer is None else Path(pointer["path"])


def _steps(records: list[Record]) -> int:
    """Optimizer steps that were done."""
    return max((record["step"] for record in records if "step_s" in record), default=0)


def manifest(run_dir: Path) -> dict[str, Any] | None:
    """The manifest of the run's corpus."""
    corpus = _corpus(RunFolder(run_dir))
    return None if corpus is None else _json(corpus / "manifest.json")


def throughput(records: list[Record]) -> dict[str, float] | None:
    """Steps, tokens, seconds, tokens a second (median), and the shares of time spent waiting for data and teacher."""
    steps = [record for record in records if "step_s" in record]
    if not steps:
        return None
    seconds = sum(record["step_s"] for record in steps)
    return {
        "steps": len(steps),
        "seconds": seconds,
        "supervised_tokens": sum(record["tokens"] for record in steps),
        "tokens_per_s": median(record["tokens_per_s"] for record in steps),
        **{
            share: sum(record[share] * record["step_s"] for record in steps) / seconds
            for share in ("data_wait", "teacher_wait")
        },
    }


def format_score(entry: dict[str, Any], share: bool) -> tuple[str, str]:
    """A score and its interval: `54.7%`, `[51.6, 57.8]`; of what is no share a number: `38.9`, `[37.2, 40.6]`."""
    if not share:
        return format_number(entry["score"]), f"[{', '.join(format_number(x) for x in entry['ci'])}]"
    score, _, ci = percent(entry["score"], entry["ci"], 1).partition(" ")
    return score, ci


def format_quotient(task: dict[str, Any]) -> str:
    """A task's recovery or retention with its interval, or why it has none."""
    kind = "recovery" if task["kind"] == "language" else "retention"
    if task[kind] is None:
        return f"{kind}: {task[f'{kind}_reason']}"
    return f"{kind} {percent(task[kind], task[f'{kind}_ci'], 0 if kind == 'recovery' else 1)}"


def environment(*others: jinja2.BaseLoader) -> jinja2.Environment:
    """The templates of this room and of `others`, with filters for scores; HTML is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader("lingu_ray", "report/templates"), *others]),
        autoescape=lambda template: template is not None and template.endswith(".html"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"score": format_score, "quotient": format_quotient, "model": display_name}
    environment.filters |= {"percent": percent, "models": models_of, "number": "{:,.0f}".format}
    return environment


def _settings(path: Path) -> list[tuple[str, str]]:
    """The run's settings, flat: `train.steps`, `200`; without the credentials that a URI may carry."""
    if not path.exists():
        return []
    flat: list[tuple[str, str]] = []

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), inner)
        elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
            for index, inner in enumerate(value):
                walk(f"{prefix}[{inner.get('name', index)}]", inner)
        elif value is not None:
            flat.append((prefix, re.sub(r"://[^/@\s]+@", "://…@", str(value))))

    walk("", strict_yaml.load(path.read_text(encoding="utf-8"), str(path))[0])
    return flat


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def svgs(panels: list[Panel]) -> list[Markup]:
    """The panels as elements for a page."""
    return [Markup(panel.svg()) for panel in panels]
