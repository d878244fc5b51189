"""HTML pages: Jinja templates, their filters, and figures as SVG elements."""

from __future__ import annotations

from functools import cache

import jinja2
from markupsafe import Markup

from lingu_ray.evaluation.results import Estimate, QuotientName, Recovery, TaskScores
from lingu_ray.evaluation.roles import DISTILLED, References, in_order
from lingu_ray.report.plots import Panel, display_name, format_number


@cache
def environment(*others: jinja2.BaseLoader) -> jinja2.Environment:
    """A Jinja environment with the templates of this folder and of `others`, and filters for scores; escapes HTML."""
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader("lingu_ray", "report/templates"), *others]),
        autoescape=lambda template: template is not None and template.endswith(".html"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"score": format_score, "quotient": format_quotient, "model": display_name}
    environment.filters |= {"over": format_over, "compared": compared_models, "seeing": format_seeing}
    environment.filters["cut_off"] = format_cut_off
    environment.filters["ahead"] = format_ahead
    environment.filters["number"] = "{:,.0f}".format
    return environment


def svgs(panels: list[Panel]) -> list[Markup]:
    """The panels as elements for a page."""
    return [Markup(panel.svg()) for panel in panels]


def format_score(found: Estimate, is_share: bool) -> tuple[str, str]:
    """A score and its interval: `54.7%`, `[51.6, 57.8]`, or if it is no share `38.9`, `[37.2, 40.6]`."""
    if not is_share:
        return format_number(found.value), f"[{', '.join(format_number(x) for x in found.ci)}]"
    score, _, ci = found.percent(1).partition(" ")
    return score, ci


def format_quotient(task: TaskScores, model: str = DISTILLED) -> str:
    """A model's recovery or retention on a task with its interval, or why the distilled model has none."""
    found = task.models.get(model)
    if found is not None and found.quotient is not None:
        return f"{task.quotient_name} {found.quotient.percent(task.digits)}"
    reason = task.reason if model == DISTILLED else None
    return f"{task.quotient_name}: {reason or 'none'}"


def format_seeing(task: TaskScores, references: References) -> str:
    """How much images add to the baseline's score, for a task that was also measured without them."""
    model = references.baseline
    if task.blind is None or model not in task.blind.seeing:
        return "–"
    gain = f"images add {task.amount(task.blind.seeing[model])} to {display_name(model)}"
    return f"{gain}, nothing beyond noise" if task.blind.adds_nothing(model) else gain


def format_cut_off(task: TaskScores, blind: bool = False) -> str:
    """Which shares of the models' answers were cut off, of those that had any: `; cut off: 12.5% of Adapted`.

    `blind`: of the answers without images.
    """
    own = {model: found.cut_off for model, found in task.models.items()}
    shares = own if not blind else task.blind.cut_off if task.blind else {}
    found = [f"{share:.1%} of {display_name(model)}" for model in in_order(shares) if (share := shares[model])]
    return f"; cut off: {', '.join(found)}" if found else ""


def compared_models(result: Recovery) -> list[str]:
    """The models that the distilled one is compared with on some task."""
    return in_order(model for task in result.tasks.values() for model in task.over)


def format_ahead(result: Recovery, other: str, quotient: QuotientName) -> str:
    """The distilled model's mean recovery or retention minus that of `other`; a dash without a value."""
    means = result.over.get(other)
    difference = None if means is None else means.of(quotient)
    return "–" if difference is None else f"{difference.points(1)} points"


def format_over(task: TaskScores, other: str) -> tuple[str, str]:
    """The distilled model's lead over `other`, and the recovery or retention of `other`; a dash without a value."""
    difference = task.over.get(other)
    if difference is None:
        return "–", ""
    own = task.models[other].quotient
    return task.amount(difference), f"own {task.quotient_name} {own.percent(task.digits)}" if own else ""
