"""Train a run: corpus, pair, distillation, controls, evaluation, report.

python -m lingu_ray.train                             # the embedded demo, offline
python -m lingu_ray.train smollm2-135m train.steps=30
python -m lingu_ray.train my-run.yaml distill.temperature=2
python -m lingu_ray.train --help                      # every setting
ray job submit --working-dir . -- python -m lingu_ray.train my-run.yaml
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lingu_ray.config import Config
from lingu_ray.config.command_line import load_config
from lingu_ray.errors import Interrupted, UserError, run_command
from lingu_ray.storage import origin

if TYPE_CHECKING:
    from lingu_ray.evaluation.results import Recovery
    from lingu_ray.evaluation.tasks.task import Task
    from lingu_ray.runtime.run import Run
    from lingu_ray.runtime.run_folder.lease import Lease

log = logging.getLogger(__name__)


def main(arguments: list[str]) -> None:
    """Train, evaluate and report a run."""
    config = load_config(arguments)

    from lingu_ray.evaluation.contamination.find import look_for_items
    from lingu_ray.report.rehearsal import rehearse_report
    from lingu_ray.runtime import trainer
    from lingu_ray.runtime.cluster.connect import connect
    from lingu_ray.runtime.controls import control_configs
    from lingu_ray.runtime.preparation import check_output
    from lingu_ray.runtime.run_folder.run_store import writing_to
    from lingu_ray.runtime.tracking.progress import quiet_libraries
    from lingu_ray.runtime.tracking.store import check_store
    from lingu_ray.runtime.tracking.store_uri import tracking_uri

    quiet_libraries()
    for said in config.without_effect():
        log.warning("without effect: %s", said)
    check_output(config)
    check_store(tracking_uri(config), config.tracking.experiment)
    with writing_to(config.run_place) as lease:
        checked = check(config, lease) if config.demo is None else check_demo(config)  # before Ray starts
        rehearse_report(planned(config))
        connect(config.ray)
        config = with_demo(config)
        runs, tasks = checked or check(config, lease)
        distilled, *controls = trainer.run_together(runs, partial(look_for_items, config, tasks, runs[0].folder))
        config = runs[0].config  # with the precision that was chosen
        lease.require()
        recovery = measure_trained(config, distilled, dict(zip(control_configs(config), controls, strict=True)))
        lease.require()
        show(config, distilled, recovery)


def check(config: Config, lease: Lease) -> tuple[list[Run], list[Task]]:
    """The run, its controls where there are some, and its tasks, after all checks that need no Ray."""
    from lingu_ray.evaluation.run import check_engine
    from lingu_ray.evaluation.tasks.load import load_tasks
    from lingu_ray.runtime.controls import control_configs, say_controls
    from lingu_ray.runtime.preparation import check_tasks
    from lingu_ray.runtime.trainer import checked

    check_tasks(config)
    check_engine(config.evaluation, [path for path in (config.teacher.path, config.student.path) if path])
    runs = checked([config, *control_configs(config).values()], lease)
    say_controls(config)
    return runs, load_tasks(config.evaluation)


def check_demo(config: Config) -> None:
    """Check what can be checked of the demo without Ray: its models and data may not be built yet."""
    from lingu_ray.runtime.resume import check_settings
    from lingu_ray.runtime.run_folder.folder import RunFolder

    check_settings(planned(config), RunFolder(config.run_dir))


def planned(config: Config) -> Config:
    """The settings with models and data, whether those of the demo are built yet or not."""
    if config.demo is None:
        return config
    from lingu_ray.demo.prepare import filled

    return filled(config)


def measure_trained(config: Config, distilled: Path | str, controls: dict[str, Path | str]) -> Recovery | None:
    """Evaluate what was trained, controls by name; where that fails, log where the trained model is."""
    from lingu_ray.evaluation.roles import compared_models

    log.info("trained: %s", distilled)
    with kept(f"The evaluation failed; the trained model is complete: {distilled}", "evaluates what is left"):
        return measure(config, compared_models(config, distilled, controls))


@contextmanager
def kept(state: str, again: str) -> Iterator[None]:
    """Where what is done inside fails, log what is complete by then and what the same command does when run again.

    What Ctrl-C stops has not failed.
    """
    try:
        yield
    except Interrupted:
        raise
    except Exception:
        log.error(state)
        log.error("The same command, run again, %s; nothing is trained again.", again)
        raise


def with_demo(config: Config) -> Config:
    """The settings with models and data; those of the demo are built unless they exist. Ray must be running."""
    if config.demo is None:
        return config
    from lingu_ray.demo.prepare import prepare

    return prepare(config)


def measure(config: Config, models: dict[str, str]) -> Recovery | None:
    """Evaluate the models as far as that was not done before; None without evaluation tasks."""
    from lingu_ray.evaluation.run import evaluate
    from lingu_ray.runtime.resume import check_loaded_models
    from lingu_ray.runtime.run_folder.folder import RunFolder

    if not config.evaluation.tasks:
        return None
    folder = RunFolder(config.run_dir)
    check_loaded_models(config, folder)
    paths = {name: Path(path) for name, path in models.items()}
    return evaluate(paths, config.evaluation, folder.report, ray_settings=config.ray)


def show(config: Config, export: Path | str, recovery: Recovery | None) -> None:
    """Write report and model card, track them, and print the result and where its files are."""
    from mlflow.exceptions import MlflowException

    from lingu_ray.evaluation.contamination.found import trained_items
    from lingu_ray.report.evaluate_command import evaluate_command
    from lingu_ray.report.run_report import write_run_report
    from lingu_ray.runtime.run_folder.folder import RunFolder
    from lingu_ray.runtime.tracking.store_uri import tracking_uri, where_to_look
    from lingu_ray.shell import shell_word

    folder = RunFolder(config.run_dir)
    state = f"The report failed; model and scores are complete: {export}, {origin(folder.report)}"
    with kept(state, "writes the report"):
        page = origin(write_run_report(config, recovery))
    with kept(f"Tracking failed; the report is complete: {page}", "tracks what is missing"):
        try:
            track(config, recovery)
        except (UserError, MlflowException) as error:
            log.warning("%s\nModel and report are complete; the same command logs them in MLflow", error)
    if recovery is not None:
        print("\n".join([recovery.verdict.text, *trained_items(folder, recovery)]))
    elif command := evaluate_command(config, folder):
        print(f"Not evaluated. To measure what came back:\n{command}")
    else:
        print("Not evaluated: the model has code of its own, which evaluation does not run; measure it by other means")
    print(f"report   {shell_word(page)}\nmodel    {shell_word(export)}\ncompare  {where_to_look(tracking_uri(config))}")


def track(config: Config, recovery: Recovery | None) -> None:
    """Log the report, and the scores of the run's model and of its controls', each in its own MLflow run."""
    from lingu_ray.evaluation.roles import trained_role
    from lingu_ray.evaluation.tracking import log_scores, log_verdict
    from lingu_ray.runtime.controls import control_configs
    from lingu_ray.runtime.run_folder.folder import RunFolder
    from lingu_ray.runtime.tracking.tracker import Tracker

    folder = RunFolder(config.run_dir)
    with Tracker(config, folder) as run:
        run.catch_up()
        run.log_files(folder.report, folder.contamination)
        if recovery is not None:
            log_scores(run, recovery, recovery.own_model(trained_role(config)))
            log_verdict(run, recovery.verdict)
    if recovery is not None:
        for control in control_configs(config).values():
            with Tracker(control, RunFolder(control.run_dir)) as run:
                run.catch_up()
                log_scores(run, recovery, trained_role(control))


if __name__ == "__main__":
    run_command(main)
