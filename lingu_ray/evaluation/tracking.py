"""An evaluation in MLflow: what its metrics are called, and its runs.

A run has report and settings, and nested under it is one for each model, with its scores.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from lingu_ray.atomic import check_records
from lingu_ray.config import TrackingConfig
from lingu_ray.config.flat import flat
from lingu_ray.evaluation.results import QUOTIENTS, Recovery, TaskScores, Verdict
from lingu_ray.runtime.run_folder.folder import RunFolder
from lingu_ray.runtime.tracking.environment import read_environment
from lingu_ray.runtime.tracking.mlflow_run import MlflowRun
from lingu_ray.runtime.tracking.store import check_store
from lingu_ray.runtime.tracking.store_uri import STORE, store_uri
from lingu_ray.storage import origin

SCORE, NATS, BLIND, CUT_OFF = "score", "nats", "blind", "cut_off"
MODELS = ".mlflow"
"""Folder of an evaluation's results with the pointers to its models' runs."""
VERDICT = "verdict"
"""Tag of the run whose evaluation the verdict is about."""
ASKED = "asked/"
"""Begin of the tags, one a task, with the fingerprint of the items that the run's model was asked."""
ENGINE = "engine/"
"""Begin of the tags, one a task, with the engine that asked, and its precision."""
FORMULA = "formula/"
"""Begin of the tags, one a mean, with its formula and tasks."""
_TAG_LIMIT = 5000  # characters that every version of MLflow takes


def figure_name(task: str, metric: str = SCORE) -> str:
    """The name of a task's metric: its score, recovery or retention; `nats`, `recovery_nats`, `blind`, `cut_off`."""
    return f"eval/{task}/{metric}"


def task_of(name: str) -> str | None:
    """The task whose score is of that name; None for any other metric."""
    head, _, rest = name.partition("/")
    task, _, metric = rest.rpartition("/")
    return task if head == "eval" and metric == SCORE else None


def figures_of(result: Recovery, model: str) -> dict[str, float]:
    """The model's scores on every task, by metric, in nats and blind, with recovery or retention; the share of its
    answers that were cut off, where it gave any; the means.

    What it has no value of is left out.
    """
    metrics: dict[str, float] = {}
    for name, task in result.tasks.items():
        metrics |= _of_task(name, task, model, SCORE)
        if task.nats is not None:
            metrics |= _of_task(name, task.nats, model, NATS, f"_{NATS}")
        if task.blind is not None and model in task.blind.scores:
            metrics[figure_name(name, BLIND)] = task.blind.scores[model].value
    means = result.models.get(model)
    return metrics | {name: mean.value for name, mean in (means.items() if means else ()) if mean is not None}


def _of_task(name: str, task: TaskScores, model: str, score: str, suffix: str = "") -> dict[str, float]:
    found = task.models.get(model)
    if found is None:
        return {}
    metrics = {figure_name(name, score): found.score.value}
    if found.cut_off is not None:
        metrics[figure_name(name, CUT_OFF)] = found.cut_off
    if found.quotient is not None:
        metrics[figure_name(name, task.quotient_name + suffix)] = found.quotient.value
    return metrics


def origins_of(result: Recovery, model: str) -> dict[str, dict[str, str]]:
    """How the model's figures came about, where it is known, by how tags of it begin.

    `ASKED`: the fingerprint of the items, and `ENGINE`: what asked them, and its precision, by task; `FORMULA` by mean.
    """
    tasks = {name: task for name, task in result.tasks.items() if model in task.models}
    return {
        ASKED: {name: task.asked for name, task in tasks.items() if task.asked},
        ENGINE: {name: task.engine for name, task in tasks.items() if task.engine},
        FORMULA: _formulas(result, model),
    }


def _formulas(result: Recovery, model: str) -> dict[str, str]:
    """How those of the model's means that have a value are computed: against which references, over which tasks."""
    means, found = result.models.get(model), {}
    for name, mean in means.items() if means else ():
        counted = {task: of_task.counted(result.recovery_in) for task, of_task in result.tasks.items()}
        tasks = [task for task, of_task in counted.items() if of_task.quotient_name == name and of_task.in_mean]
        in_nats = ", in nats" if name == "recovery" and result.recovery_in == "nats" else ""
        if mean is not None:
            found[name] = f"{result.references.formulas[name]} over {', '.join(tasks)}{in_nats}"
    return found


def log_scores(run: MlflowRun, result: Recovery, model: str) -> None:
    """Log the model's figures, and tag the run with how they came about: items, engine, formulas of the means.

    They take the place of all that an earlier evaluation left there, of other tasks, too.
    """
    known = run.data
    earlier = (name for name in known.metrics if name.startswith("eval/") or name in QUOTIENTS.values())
    run.log_figures(dict.fromkeys(earlier) | figures_of(result, model))
    origins = origins_of(result, model)
    tags = {f"{begin}{name}": said[:_TAG_LIMIT] for begin, found in origins.items() for name, said in found.items()}
    for gone in (tag for tag in known.tags if tag.startswith(tuple(origins)) and tag not in tags):
        run.client.delete_tag(run.run_id, gone)
    run.set_tags(tags)


def log_verdict(run: MlflowRun, verdict: Verdict) -> None:
    """Tag the run with the verdict's sentence."""
    run.set_tags({VERDICT: verdict.text[:_TAG_LIMIT]})


def open_evaluation(settings: TrackingConfig, out: Path, config: BaseModel) -> MlflowRun:
    """Open the MLflow run of the evaluation in `out`: the one of an earlier call, or a new one with `config` as its
    parameters.

    Without a URI in the settings or the environment the store lies beside `out` where runs have one there, else in it.
    """
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    uri = store_uri(settings, out.parent if (out.parent / STORE).exists() else origin(out))
    check_store(uri, settings.experiment)
    check_records(out / MODELS)
    run = MlflowRun(uri, settings, RunFolder(out).mlflow, out.name, flat(config))
    if settings.system_metrics:
        run.watch_system()
    return run


def log_evaluation(
    run: MlflowRun, settings: TrackingConfig, out: Path, result: Recovery, models: dict[str, Path]
) -> None:
    """Log the files of `out`, the verdict, and the metrics of each measured model, in a nested run.

    `models`: paths of the models, of those that are known; a tag has it.
    """
    out = out.resolve()
    run.log_environment(read_environment(out))
    run.log_files(*(out / name for name in ("report.html", "recovery.json", "recovery.png")))
    log_verdict(run, result.verdict)
    for model in result.measured:
        tags = settings.tags | ({"model": str(models[model])} if model in models else {})
        nested = settings.model_copy(update={"run_name": None, "parent": out, "tags": tags})
        with MlflowRun(run.uri, nested, out / MODELS / f"{model}.json", model, {}) as child:
            log_scores(child, result, model)
