"""Figures of one evaluated model, by name: what MLflow and comparisons of runs show of `recovery.json`."""

from __future__ import annotations

from typing import Any

from lingu_ray.evaluation.items import CE_ONLY, DISTILLED

SCORE = "score"


def figure_name(task: str, figure: str = SCORE) -> str:
    """The name of a task's figure: its score, recovery or retention."""
    return f"eval/{task}/{figure}"


def task_of(name: str) -> str | None:
    """The task whose score is of that name; None for any other figure."""
    head, _, rest = name.partition("/")
    task, _, figure = rest.rpartition("/")
    return task if head == "eval" and figure == SCORE else None


def figures_of(result: dict[str, Any], model: str) -> dict[str, float]:
    """The model's score, and recovery or retention where it has one, on every task; mean recovery and retention.

    Args:
        result: the content of `recovery.json`.
        model: its name there.
    """
    figures = {
        figure_name(task, figure): entry["models"][model].get(figure)
        for task, entry in result["tasks"].items()
        if model in entry["models"]
        for figure in (SCORE, "recovery", "retention")
    }
    means = result["summary"]["models"].get(model, {})
    figures |= {name: means.get(name) for name in ("recovery", "retention")}
    return {name: value for name, value in figures.items() if value is not None}


def reasons_of(result: dict[str, Any]) -> dict[str, str]:
    """Why mean recovery or retention of the distilled model has no value, where it has none."""
    found: dict[str, str] = {}
    for name in (name for name in ("recovery", "retention") if result["summary"][name] is None):
        reasons = [f"{task}: {why}" for task, entry in result["tasks"].items() if (why := entry.get(f"{name}_reason"))]
        found[name] = "; ".join(reasons) or "no task measures it"
    return found


def trained_model(result: dict[str, Any]) -> str:
    """The name that a run's own model has in its evaluation."""
    return DISTILLED if any(DISTILLED in task["models"] for task in result["tasks"].values()) else CE_ONLY
