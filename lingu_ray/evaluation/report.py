"""A run's report: one self-contained HTML page, and its figures as PNG files."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from statistics import median
from typing import Any

import jinja2
import yaml

from lingu_ray.evaluation.plots import display_name, format_number, models_of, plot_loss, plot_recovery
from lingu_ray.evaluation.recovery import CE_ONLY, DISTILLED, percent
from lingu_ray.evaluation.samples import answered
from lingu_ray.runtime.folder import RunFolder
from lingu_ray.runtime.metrics import Record, read_records


def write_report(run_dir: Path) -> Path:
    """Write `report/report.html`, `loss.png` and `recovery.png` from what the run's folder holds; the page's path.

    Read where they exist: config.yaml, metrics.jsonl, samples.jsonl, corpus.json (and the manifest it points to),
    report/recovery.json, and metrics and samples of the control. What is missing is left out of the page.
    """
    run, control = RunFolder(run_dir), RunFolder(run_dir / "control")
    run.report.mkdir(parents=True, exist_ok=True)
    records, control_records = read_records(run.metrics), read_records(control.metrics)
    result = _json(run.report / "recovery.json")
    loss, recovery = run.report / "loss.png", run.report / "recovery.png"
    has_loss = plot_loss(records, control_records, loss)
    if result is not None:
        plot_recovery(result, recovery)
    page = (
        environment()
        .get_template("report.html")
        .render(
            name=run_dir.resolve().name,
            result=result,
            answers=answered(run.report, result["tasks"]) if result is not None else [],
            loss=embedded(loss) if has_loss else None,
            recovery=embedded(recovery) if result is not None else None,
            settings=_settings(run.config),
            manifest=manifest(run_dir),
            throughput=throughput(records),
            samples=_samples({DISTILLED: read_records(run.samples), CE_ONLY: read_records(control.samples)}),
        )
    )
    path = run.report / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def write_evaluation(result: dict[str, Any], out_dir: Path) -> Path:
    """Write `report.html` and `recovery.png` of an evaluation that belongs to no run; the page's path."""
    figure = out_dir / "recovery.png"
    plot_recovery(result, figure)
    page = (
        environment()
        .get_template("evaluation.html")
        .render(
            name=out_dir.resolve().name,
            result=result,
            recovery=embedded(figure),
            answers=answered(out_dir, result["tasks"]),
        )
    )
    path = out_dir / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def manifest(run_dir: Path) -> dict[str, Any] | None:
    """The manifest of the run's corpus."""
    pointer = _json(RunFolder(run_dir).corpus)
    return None if pointer is None else _json(Path(pointer["path"]) / "manifest.json")


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
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader("lingu_ray", "evaluation/templates"), *others]),
        autoescape=lambda template: template is not None and template.endswith(".html"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"score": format_score, "quotient": format_quotient, "model": display_name}
    environment.filters |= {"percent": percent, "models": models_of}
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

    walk("", yaml.safe_load(path.read_text(encoding="utf-8")))
    return flat


def _samples(by_model: dict[str, list[Record]]) -> list[dict[str, Any]]:
    """Each sampled question once: the expected answer, distilled's first and last, the control's last."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for record in by_model[DISTILLED]:
        key = (record["source"], record["position"])
        row = rows.setdefault(key, {**record, "first_step": record["step"], "first": record["answer"], "control": None})
        row["last_step"], row["last"] = record["step"], record["answer"]
    for record in by_model[CE_ONLY]:
        if row := rows.get((record["source"], record["position"])):
            row["control"] = record["answer"]
    return list(rows.values())


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def embedded(path: Path) -> str:
    """A PNG as a `data:` address, so that a page needs no other file."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
