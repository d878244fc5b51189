"""The page's sections on the method's lead: over each other model, over several trainings, by damage and data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.result.figures import map_panel, shown_name
from benchmarks.result.markdown import row_line, table_head
from benchmarks.result.seeds import (
    REFERENCES,
    TRAININGS,
    Measured,
    Results,
    Seeds,
    map_cells,
    nats,
    over_trainings,
    percent,
    written_difference,
)
from lingu_ray.evaluation.results import PERPLEXITY, QUOTIENTS, TaskScores
from lingu_ray.evaluation.roles import DISTILLED
from lingu_ray.report.plots import save_panels


def ahead_section(measured: Sequence[Measured]) -> str:
    """The method's lead in recovery and retention over each other model, item by item."""
    head = ["damage, data, model", "recovery, %", "selective − it, points", "retention, %", "selective − it, points"]
    lines = [
        row_line(f"{results.name}, {shown_name(model)}", _ahead_cells(results, model))
        for results in map_cells(measured)
        for model in results.models
        if results.ahead("recovery", model).found and model not in REFERENCES
    ]
    return "\n".join(["## Against each other model", "", *table_head(head), *lines]) if lines else ""


def _ahead_cells(results: Results, model: str) -> list[str]:
    found = [(results.mean(name, model), results.ahead(name, model)) for name in QUOTIENTS.values()]
    return [one.text(percent) for pair in found for one in pair]


def trainings_section(measured: Sequence[Measured]) -> str:
    """The method's means and its leads with intervals over seeds: what another training would give."""
    head = ["damage, data", "", "recovery", "retention"]
    lines = []
    for results in map_cells(measured):
        means = [results.mean(name, DISTILLED) for name in QUOTIENTS.values()]
        lines += _training_rows(results, f"{shown_name(DISTILLED)}, %", means)
        for model in (name for name in results.models if name not in (*REFERENCES, DISTILLED)):
            ahead = [results.ahead(name, model) for name in QUOTIENTS.values()]
            lines += _training_rows(results, f"− {shown_name(model)}, points", ahead)
    note = (
        f"Mean and 95% interval over trainings, by Student's t, where {TRAININGS} or more seeds were trained. Items "
        "are the same in each, so what others would say is in the intervals of the seeds."
    )
    return "\n".join(["## Over trainings", "", note, "", *table_head(head), *lines]) if lines else ""


def _training_rows(results: Results, what: str, found: Sequence[Seeds]) -> list[str]:
    """A row, or none if no value has enough seeds."""
    cells = [over_trainings([one.value for one in seeds.found], percent) for seeds in found]
    return [row_line(results.name, [what, *cells])] if any(cells) else []


def map_section(measured: Sequence[Measured], out: Path) -> str:
    """Damage by kind of data: what was lost, and what KD brings back beyond CE."""
    cells = [one for one in map_cells(measured) if one.control]
    if not cells:
        return ""
    picture = []
    if len(cells) > 1:
        save_panels([map_panel(measured)], out / "map.png")
        picture = ["![KD minus CE](map.png)", ""]
    texts = [name for name, task in cells[0].tasks("language") if task.metric == PERPLEXITY]
    tasks = dict(cells[0].tasks())  # of two metrics of a task, nats remain
    head = [
        "damage, data",
        *(f"lost of {name}, nats" for name in texts),
        "recovery by CE, %",
        "by KD, %",
        "KD − CE, points",
        "retention by CE, %",
        "by KD, %",
    ]
    means = [*table_head(head), *(_map_row(one, texts) for one in cells)]
    units = [f"{name}, {written_difference(task)[0]}" for name, task in tasks.items()]
    by_task = [*table_head(["KD − CE", *units]), *(_difference_row(one, tasks) for one in cells)]
    note = "By task, above 0 KD is better:"
    of_head = {one.comparison for one in Results.of(measured).measured}
    others = [one for results in cells for one in results.measured if one.comparison not in of_head]
    verdicts = [f"- {one.comparison.name}: {one.result.verdict.text}" for one in others]
    lines = ["## Where the teacher is worth it", "", *picture, *means, "", *verdicts, "", note, "", *by_task]
    return "\n".join(lines)


def _map_row(results: Results, texts: list[str]) -> str:
    control = results.control or ""
    cells = [nats(results.lost_nats(name)) for name in texts]
    cells += [results.mean("recovery", model).text(percent) for model in (control, DISTILLED)]
    cells += [results.ahead("recovery", control).text(percent)]
    cells += [results.mean("retention", model).text(percent) for model in (control, DISTILLED)]
    return row_line(results.name, cells)


def _difference_row(results: Results, tasks: Mapping[str, TaskScores]) -> str:
    control = results.control or ""
    differences = (results.over(name, task.metric, control) for name, task in tasks.items())
    shown = (written_difference(task)[1] for task in tasks.values())
    return row_line(results.name, [one.text(format) for one, format in zip(differences, shown, strict=True)])
