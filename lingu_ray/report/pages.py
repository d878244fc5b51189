"""How pages are made: templates with their filters, figures as SVG elements, pictures as `data:` addresses."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from lingu_ray.evaluation.recovery import percent
from lingu_ray.report.plots import Panel, display_name, format_number, models_of


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


def svgs(panels: list[Panel]) -> list[Markup]:
    """The panels as elements for a page."""
    return [Markup(panel.svg()) for panel in panels]


def embedded(path: Path) -> str:
    """A PNG as a `data:` address, so that a page needs no other file."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


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
