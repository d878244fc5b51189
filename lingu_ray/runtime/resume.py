"""Checks whether settings, models and data may continue the run that a folder holds.

A folder in which nothing was trained yet can be used by any settings: its run starts again. A folder with a checkpoint
or a finished model is bound to the settings, models and data that its run was started with.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from lingu_ray.atomic import check_records, read_json, write_json
from lingu_ray.config import Config
from lingu_ray.config.command_line import load_yaml
from lingu_ray.config.differences import differences
from lingu_ray.config.facts import MAY_CHANGE
from lingu_ray.config.tree import settings_with
from lingu_ray.content import fingerprint, model_identity
from lingu_ray.corpus.fingerprint import source_content
from lingu_ray.corpus.plan import Plan
from lingu_ray.corpus.splits import split_source
from lingu_ray.corpus.store import Corpus, is_built
from lingu_ray.errors import UserError
from lingu_ray.runtime.checkpoints.checkpoint import checkpoints, storage_failures_explained
from lingu_ray.runtime.models import towers
from lingu_ray.runtime.run_folder.folder import RunFolder
from lingu_ray.storage import local_copy, place

log = logging.getLogger(__name__)


def trained_steps(folder: RunFolder) -> int:
    """Steps that a run was trained for: those of its newest checkpoint, or of its finished model.

    Raises:
        UserError: storage fails, so nothing is known of a checkpoint.
    """
    with storage_failures_explained(folder.checkpoints):
        newest = [state.step for _, state in checkpoints(folder.checkpoints)][-1:]
    return max([0, *newest, *([folder.exported_step] if folder.exported_step else [])])


def check_settings(config: Config, folder: RunFolder) -> None:
    """Check that the settings may continue the run in the folder; where nothing was trained, it is cleared for them.

    Raises:
        UserError: `resume=never`, settings that differ or are not recorded any more, or steps that are fewer than were
            trained; a record of the run that was cut off.
    """
    check_records(folder.root)
    if (parent := config.tracking.parent) is not None:
        check_records(parent, RunFolder(parent).mlflow.name)
    step = trained_steps(folder)
    if step and config.resume == "never":
        raise UserError(f"{folder.place} exists and resume=never: choose another name, or remove the folder")
    if not folder.config.exists():
        if step:
            raise UserError(
                f"{folder.place} has been trained for {step} steps, and nothing says with which settings, since "
                f"{folder.config.name} is gone: put it back from a copy, choose another name=…, or remove the folder "
                "to start again"
            )
        return
    earlier = load_yaml(folder.config)
    before, now = (one.model_dump(mode="json") for one in (earlier, config))
    if config.train.precision == "auto":  # a run that was trained keeps its own (`runtime/training/precision.py`)
        before["train"]["precision"] = "auto"
    lines = differences(before, now, settings_with(MAY_CHANGE))
    if lines and step:
        raise UserError(
            f"{folder.place} was started with other settings, and has been trained for {step} steps with them:\n"
            + "\n".join(f"  {line}" for line in lines)
            + "\nChoose another name=…, or remove the folder to start again."
        )
    if lines:
        log.info("%s: nothing was trained there yet; started again with other settings:", folder.place)
        for line in lines:
            log.info("  %s", line)
        folder.clear()
    elif step:
        _check_steps(earlier.train.steps, config.train.steps, step, folder)


def _check_steps(before: int, now: int, step: int, folder: RunFolder) -> None:
    """Check a changed `train.steps`: refuse what cannot be reached, and log which schedule holds from now on."""
    if now == before:
        return
    if now < step:
        raise UserError(
            f"train.steps={now}, and {folder.place} has been trained for {step} steps: "
            f"give {step} or more, or choose another name=…"
        )
    if now > step and not checkpoints(folder.checkpoints):
        raise UserError(
            f"train.steps={now}: {folder.place} ended at step {step} and its checkpoints are gone, so it cannot be "
            f"trained further. Choose another name=… with student.path={folder.exported_model}"
        )
    log.info(
        "%s: train.steps was %d and is %d now: from step %d on, learning rate, temperature and weights are those that "
        "a run of %d steps has there",
        *(folder.place, before, now, step + 1, now),
    )


def check_models(config: Config, folder: RunFolder) -> None:
    """Check that the models are those that the run was started with; record them where nothing was trained.

    Raises:
        UserError: the files of one have changed.
    """
    named, now = _models(config), model_contents(config)
    if config.student.from_teacher is not None:  # the initial model is of these settings, too
        settings = config.student.from_teacher.model_dump(mode="json", exclude={"tower"})
        now["from_teacher"] = fingerprint([settings, config.seed])
    before = read_json(folder.models) if folder.models.exists() else now
    trained = trained_steps(folder) > 0
    if trained and not folder.models.exists():
        log.warning("%s is gone: nothing says whether models have changed since the run was started", folder.models)
    compared = named if trained else now  # of a run that has trained, `check_settings` compares the settings
    changed = [name for name in compared if before.get(name) != now[name]]
    if changed and trained:
        raise _other_models(config, folder, changed)
    if changed:
        folder.clear()
    folder.root.mkdir(parents=True, exist_ok=True)
    write_json(folder.models, now)


TEACHER, STUDENT = LOADED = ("teacher", "student")
"""Of the models that a run starts from, those that are loaded after its initial model was made."""


def check_loaded_models(config: Config, folder: RunFolder, names: Sequence[str] = LOADED) -> None:
    """Check that these models are those that the run was started with, before they are measured, or loaded by a process
    that may be started again days later.

    Raises:
        UserError: the files of one have changed, or are gone.
    """
    if not folder.models.exists():
        return
    before, now = read_json(folder.models), model_contents(config, names)
    if changed := [name for name in now if before.get(name) != now[name]]:
        raise _other_models(config, folder, changed)


def model_contents(config: Config, names: Sequence[str] = (*LOADED, "tower")) -> dict[str, str]:
    """Identity of these models, of those that the run starts from, by their names in `models.json`."""
    models = {name: model for name, model in _models(config).items() if name in names}
    return {name: model_identity(local_copy(path), revision) for name, (_, path, revision) in models.items()}


def _other_models(config: Config, folder: RunFolder, changed: list[str]) -> UserError:
    named = _models(config)
    settings = " and ".join(f"{setting}={path}" for setting, path, _ in (named[name] for name in changed))
    return UserError(
        f"{folder.place} was started with another model than {settings} is now: its files have changed. "
        "Put them back, or choose another name=…"
    )


def _models(config: Config) -> dict[str, tuple[str, str, str | None]]:
    """Setting, path and revision of every model that the run starts from, by its name in `models.json`."""
    student, teacher = config.student, config.teacher
    found = {"teacher": ("teacher.path", teacher.path, teacher.revision)}
    if student.path is not None:
        found["student"] = ("student.path", student.path, student.revision)
    if student.tower is not None:
        found["tower"] = (towers.SETTING, *student.tower)
    return found


def check_data(plan: Plan, folder: RunFolder) -> Plan:
    """Check that the data are those that the run was trained on so far.

    Returns the plan, or that of the same corpus as an earlier version built it, where the run was trained on that.

    Raises:
        UserError: they have changed, and `corpus.if_changed` is `refuse`.
    """
    if not trained_steps(folder):
        return plan
    if not folder.corpus.exists():
        log.warning("%s is gone: nothing says whether data have changed since the run was started", folder.corpus)
        return plan
    before = read_json(folder.corpus, "path", "fingerprint", "contents")
    if before["fingerprint"] == plan.fingerprint:
        return plan
    if before["fingerprint"] in plan.earlier and is_built((earlier := plan.as_earlier(before["fingerprint"])).folder):
        return earlier
    changed = [name for name, content in plan.contents.items() if before["contents"].get(name) != content]
    if changed:
        what = f"the data of source {', '.join(changed)}"
    elif [*before["contents"]] != [*plan.contents]:
        what = "the order of corpus.sources"
    else:
        what = "the student's processor, or lingu_ray's own rules,"
    if plan.config.if_changed == "refuse":
        raise UserError(
            f"{folder.place} was trained on another corpus ({before['path']}): {what} changed since. Put that back, "
            "choose another name=…, or train on with the new data by corpus.if_changed=warn"
        )
    log.warning("%s: %s changed since the run was started; training on with the new data", folder.place, what)
    return plan


def tell_changed_data(config: Config, folder: RunFolder) -> None:
    """Warn where the data of a finished run have changed since: it is not trained on what they are now."""
    if not folder.corpus.exists():
        return
    before = read_json(folder.corpus, "contents")["contents"]
    for source in config.training_sources():
        try:
            now = source_content(source, split_source(source))
        except UserError as error:  # a finished run needs its data no more
            log.info("%s: nothing says whether its data have changed (%s)", folder.place, error)
            continue
        if before.get(source.name) != now:
            log.warning(
                "%s: the data of source %s changed since the run was trained, and it is not trained again; to train on "
                "them as they are now, choose another name=…",
                *(folder.place, source.name),
            )


def record_corpus(plan: Plan, folder: RunFolder) -> None:
    """Record which corpus the run is trained on, and since which step: another one was before, where data changed."""
    before = read_json(folder.corpus, "fingerprint")["fingerprint"] if folder.corpus.exists() else plan.fingerprint
    since = corpus_since(folder) if before == plan.fingerprint else trained_steps(folder)
    pointer = {"path": str(plan.folder), "fingerprint": plan.fingerprint, "contents": plan.contents, "since": since}
    write_json(folder.corpus, pointer)


def corpus_since(folder: RunFolder) -> int:
    """The step after which the run is trained on its corpus; 0 where it always was, or nothing says otherwise."""
    return read_json(folder.corpus).get("since", 0) if folder.corpus.exists() else 0


def corpus_place(folder: RunFolder) -> Path | str | None:
    """Where the corpus lies, or lay, that the run was trained on; None where that was not recorded."""
    return place(read_json(folder.corpus, "path")["path"]) if folder.corpus.exists() else None


def recorded_corpus(folder: RunFolder) -> Corpus | None:
    """The corpus that the run was trained on; None where it was deleted since."""
    path = corpus_place(folder)
    return Corpus(path) if path is not None and is_built(path) else None
