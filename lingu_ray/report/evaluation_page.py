"""The page of an evaluation, and its part in a run's page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lingu_ray.atomic import write_text
from lingu_ray.evaluation.results import Recovery
from lingu_ray.report.pages import environment, svgs
from lingu_ray.report.paper_table import MODELS, paper_rows
from lingu_ray.report.plots import model_colors
from lingu_ray.report.samples import answered
from lingu_ray.report.score_plots import plot_recovery, recovery_panels


def write_evaluation(result: Recovery, out_dir: Path) -> Path:
    """Write `report.html` and `recovery.png` of a separate evaluation; returns the page's path."""
    template = environment().get_template("evaluation.html")
    page = out_dir / "report.html"
    write_text(page, template.render(name=out_dir.resolve().name, **scores_shown(result, out_dir)))
    return page


def scores_shown(result: Recovery | None, folder: Path) -> dict[str, Any]:
    """The variables of `scores.html` for a result with its items in `folder`; also draws `recovery.png` there."""
    if result is None:
        return {"result": None}
    plot_recovery(result, folder / "recovery.png")
    return {
        "result": result,
        "scores": svgs(recovery_panels(result)),
        "colors": model_colors(result.measured),
        "paper": paper_rows(result),
        "paper_models": MODELS,
        "answers": answered(folder, result),
    }
