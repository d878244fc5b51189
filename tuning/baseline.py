"""What all trials share, made once before the first: models, corpora, and the scores that recovery is measured against.

Reference models are the teacher and the student, *adapted*. For a student that has lost nothing yet (`student.role:
original_vlm`, or one that is built on its teacher) the plainly fine-tuned model is one too: its control, trained here.
"""

from __future__ import annotations

import itertools
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

from lingu_ray.atomic import read_json, write_json
from lingu_ray.config import Config
from lingu_ray.corpus.build import build_corpus
from lingu_ray.corpus.plan import plan_corpus
from lingu_ray.errors import UserError
from lingu_ray.evaluation.contamination.find import look_for_items
from lingu_ray.evaluation.levels import read_levels
from lingu_ray.evaluation.quotients import NoValue, mean_recovery, mean_retention
from lingu_ray.evaluation.roles import FINE_TUNED, PLAIN_CE, given_models, has_adapted, references_among
from lingu_ray.evaluation.tasks.load import load_tasks
from lingu_ray.runtime import trainer
from lingu_ray.runtime.controls import control_config
from lingu_ray.runtime.preparation import check_output, check_tasks, prepare_initial_model
from lingu_ray.runtime.resume import model_contents
from lingu_ray.runtime.run_folder.folder import RunFolder
from lingu_ray.runtime.tracking.store_uri import same_store
from lingu_ray.storage import origin
from lingu_ray.train import measure
from tuning.folder import SweepFolder
from tuning.outcome import read_outcomes
from tuning.space import Space, configure, corner_values, seeded, seeds_of

log = logging.getLogger(__name__)

BASELINE = "baseline"


def check_baseline(space: Space, base: Config, folder: Path) -> Config:
    """Check all that trials share and that can be checked without Ray; returns the settings of the reference models.

    Raises:
        UserError: a pair that does not fit, data or items that are missing or wrong, no task for an objective; the
            content of models, data or items is not what trials that are there had.
    """
    config = base.model_copy(
        update={
            "name": BASELINE,
            "output_dir": origin(folder),
            "demo": None,
            "corpus": base.corpus.model_copy(update={"cache_dir": str(base.corpora_dir)}),
            "tracking": base.tracking.model_copy(update={"uri": same_store(base)}),
        }
    )
    _check_objectives(space, config)
    check_output(config)
    check_tasks(config)
    run, sweep = RunFolder(config.run_dir), SweepFolder(folder)
    _check_unchanged(sweep, "model", model_contents(config))
    prepare_initial_model(config, run)
    plan, tasks = plan_corpus(config, run.initial_model), load_tasks(config.evaluation)
    if config.corpus.if_changed == "refuse":
        _check_unchanged(sweep, "source", plan.contents)
    _check_unchanged(sweep, "task", {task.config.name: task.asked for task in tasks})
    return config


def _check_unchanged(folder: SweepFolder, kind: str, now: Mapping[str, str]) -> None:
    """Record the contents that trials have in common, by name; once a trial has ended with them, refuse others.

    Raises:
        UserError: trials that begin now would not compare with those that are there.
    """
    known = read_json(folder.contents) if folder.contents.exists() else {}
    before = known.get(kind, now) if any(trial.has_ended for trial in read_outcomes(folder.trials)) else now
    if changed := sorted(name for name in {*before, *now} if before.get(name) != now.get(name)):
        raise UserError(
            f"{origin(folder.root)}: the content of {kind} {', '.join(changed)} has changed since the sweep was "
            "started, and its trials would not compare: put it back, or choose another name=…"
        )
    folder.root.mkdir(parents=True, exist_ok=True)
    write_json(folder.contents, known | {kind: dict(now)})


def build_baseline(space: Space, config: Config) -> Path:
    """Build every corpus that the trials read, and measure the reference models; returns the folder of their items.

    Args:
        space: the sweep.
        config: settings of the reference models, checked (`check_baseline`).

    Raises:
        UserError: a source with too many bad rows, a model that cannot be measured.
    """
    run = RunFolder(config.run_dir)
    built, tasks = list[Config](), load_tasks(config.evaluation)
    for values, seed in itertools.product(corner_values(space), seeds_of(space, config)):
        trial = seeded(configure(config, values, space.name), config, seed)
        if not any(_same_corpus(trial, other) for other in built):
            look_for_items(trial, tasks, None, build_corpus(trial, run.initial_model))
            built.append(trial)
    models = given_models(config)
    if FINE_TUNED in reference_roles(config):
        models[FINE_TUNED] = str(trainer.run(_fine_tuned(space, config, config.run_dir.parent)))
    measure(config, models)
    warn_of_no_value(space, config, run.report)
    return run.report


def warn_of_no_value(space: Space, config: Config, report: Path) -> None:
    """Tell of an objective of which no trial can have a value; the reference models' items, in `report`, decide it."""
    settings, models = config.evaluation, [*reference_roles(config)]
    references = references_among(models)
    levels = [read_levels(report, task, models, settings.bootstrap) for task in settings.tasks]
    counted = [task.counted(settings.recovery_in) for task in levels]
    for objective, mean in {"recovery": mean_recovery, "retention": mean_retention}.items():
        found = mean(counted, references.baseline, references)
        if objective in space.objectives and isinstance(found, NoValue):
            log.warning(
                "objectives: no trial will have a value of %s, nor will there be a best setting (%s): Ctrl-C, and give "
                "evaluation.tasks that measure it, or more of their items",
                *(objective, found.reason),
            )


def reference_roles(config: Config) -> tuple[str, ...]:
    """The roles of the models that all trials are compared with."""
    return (*given_models(config), *([] if has_adapted(config) else [FINE_TUNED]))


def _fine_tuned(space: Space, config: Config, folder: Path) -> Config:
    """The run that makes the fine-tuned model; in MLflow it is the sweep's child."""
    twin = control_config(config, PLAIN_CE)
    tracking = {"run_name": f"{space.name}/{FINE_TUNED}", "parent": folder}
    return twin.model_copy(update={"tracking": twin.tracking.model_copy(update=tracking)})


def _same_corpus(a: Config, b: Config) -> bool:
    return a.corpus == b.corpus and a.training_sources() == b.training_sources()


def _check_objectives(space: Space, config: Config) -> None:
    kinds = {task.kind for task in config.evaluation.tasks}
    needs = {"recovery": "language", "retention": "vision"}
    for objective in space.objectives:
        if needs[objective] not in kinds:
            raise UserError(
                f"{space.name}: the objective {objective} is measured on {needs[objective]} tasks, "
                f"and evaluation.tasks of {space.base} has none: add one"
            )


def lend_items(baseline: Path, report: Path) -> None:
    """Copy the reference models' items into a trial's report, where its own are compared with them."""
    shutil.copytree(baseline / "items", report / "items", dirs_exist_ok=True)
