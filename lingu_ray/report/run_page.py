"""A run's report: one self-contained HTML page, and its figures as PNG files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from lingu_ray.atomic import read_json, write_text
from lingu_ray.config import CONTROLS, Config
from lingu_ray.config.command_line import load_yaml
from lingu_ray.config.flat import flat
from lingu_ray.corpus.store import MANIFEST, existing_file
from lingu_ray.evaluation.contamination.found import trained_items
from lingu_ray.evaluation.recovery_json import read_recovery
from lingu_ray.evaluation.roles import DISTILLED, control_role, trained_role
from lingu_ray.report.evaluate_command import evaluate_command
from lingu_ray.report.evaluation_page import scores_shown
from lingu_ray.report.held_out import held_out_answers
from lingu_ray.report.loss_plots import loss_panels
from lingu_ray.report.pages import environment, svgs
from lingu_ray.report.plots import save_panels
from lingu_ray.report.sources import trained_sources
from lingu_ray.runtime.alignment.stage import read_alignment
from lingu_ray.runtime.controls import control_folder
from lingu_ray.runtime.resume import corpus_place, corpus_since
from lingu_ray.runtime.run_folder.folder import RunFolder
from lingu_ray.runtime.run_folder.records import Record, read_records
from lingu_ray.runtime.tracking.environment import read_environment


def write_report(run_dir: Path) -> Path:
    """Write `report/report.html`, `loss.png` and `recovery.png` from the run's folder; returns the page's path.

    It reads config.yaml, environment.json, the record of the alignment, metrics.jsonl, samples.jsonl, corpus.json (and
    the corpus that it names), report/recovery.json, and metrics and samples of the controls. What is missing is left
    out of the page.
    """
    run = RunFolder(run_dir)
    run.report.mkdir(parents=True, exist_ok=True)
    config = load_yaml(run.config) if run.config.exists() else None
    runs, counts = _runs(run, config), manifest(run_dir)
    metrics = {model: read_records(folder.metrics) for model, folder in runs.items()}
    records = next(iter(metrics.values()))  # the run's own
    samples = {model: read_records(folder.samples) for model, folder in runs.items()}
    since = corpus_since(run)
    panels = loss_panels(metrics)
    if panels:
        save_panels(panels, run.report / "loss.png")
    result = read_recovery(run.report)
    text = (
        environment()
        .get_template("report.html")
        .render(
            name=run_dir.resolve().name,
            ended=run.export.exists(),
            command=evaluate_command(config, run) if config and run.export.exists() else None,
            alignment=read_alignment(run),
            losses=svgs(panels),
            settings=flat(config) if config else {},
            versions=read_environment(run_dir),
            sources=trained_sources(config, counts, max(0, _steps(records) - since)) if config and counts else [],
            since=since,
            throughput=throughput(records),
            held_out=held_out_answers(samples, corpus_place(run)),
            trained_items=trained_items(run, result),
            **scores_shown(result, run.report),
        )
    )
    page = run.report / "report.html"
    write_text(page, text)
    return page


def _runs(run: RunFolder, config: Config | None) -> dict[str, RunFolder]:
    """The folders of the run and of the controls that were trained, by the roles of their models."""
    runs = {DISTILLED if config is None else trained_role(config): run}
    for name in CONTROLS:
        control = control_folder(run, name)
        if control.metrics.exists():
            runs.setdefault(name if config is None else control_role(config, name), control)
    return runs


def _steps(records: list[Record]) -> int:
    """Number of optimizer steps that were taken."""
    return max((record["step"] for record in records if "step_s" in record), default=0)


def manifest(run_dir: Path) -> dict[str, Any] | None:
    """The manifest of the run's corpus; None where the corpus was deleted."""
    corpus = corpus_place(RunFolder(run_dir))
    file = None if corpus is None else existing_file(corpus, MANIFEST)
    return None if file is None else read_json(file)


@dataclass(frozen=True)
class Throughput:
    """Throughput of a run. `steps`: their number; `skipped`: those of them that were not finite; `seconds` and
    `supervised_tokens`: of all steps; `tokens_per_s`: median; `data_wait`, `teacher_wait`: shares of the time.
    `workers`: their number, and the first step with it, for each change.
    """

    steps: int
    skipped: int
    seconds: float
    supervised_tokens: int
    tokens_per_s: float
    data_wait: float
    teacher_wait: float
    workers: list[tuple[int, int]]


def throughput(records: list[Record]) -> Throughput | None:
    """The throughput of the steps among the records; None without any."""
    steps = [record for record in records if "step_s" in record]
    if not steps:
        return None
    seconds = sum(record["step_s"] for record in steps)

    def waiting(share: str) -> float:
        return sum(record[share] * record["step_s"] for record in steps) / seconds

    return Throughput(
        steps=len(steps),
        skipped=sum("loss" in record and record["loss"] is None for record in steps),
        seconds=seconds,
        supervised_tokens=sum(record["tokens"] for record in steps),
        tokens_per_s=median(record["tokens_per_s"] for record in steps),
        data_wait=waiting("data_wait"),
        teacher_wait=waiting("teacher_wait"),
        workers=_changes([(record["workers"], record["step"]) for record in steps if "workers" in record]),
    )


def _changes(workers: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The first entry, and those with another number of workers than the entry before."""
    before = [None, *(number for number, _ in workers)]
    return [one for one, number in zip(workers, before, strict=False) if one[0] != number]
