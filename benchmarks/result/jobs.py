"""Jobs on this machine: their commands, folders, models and states."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from benchmarks.result.table import MERGE, RECIPES, SWEEPS, Comparison, Job, comparisons
from lingu_ray.config import strict_yaml
from lingu_ray.config.command_line import load_yaml
from lingu_ray.evaluation.recovery_json import FILE, read_recovery
from lingu_ray.evaluation.roles import TEACHER
from lingu_ray.runtime.controls import control_configs, control_folder
from lingu_ray.runtime.run_folder.folder import RunFolder
from lingu_ray.runtime.run_folder.lease import is_held
from tuning.folder import SweepFolder
from tuning.outcome import read_outcomes
from tuning.space import Space

TEACHER_PATH = "models/SmolLM2-135M-Instruct"
TASKS = RECIPES / "evaluation.yaml"
DATA_MANIFEST = Path("runs/result/data/manifest.json")

Command = list[str]
State = Literal["done", "running", "begun", "missing"]


def run_folder(job: Job) -> RunFolder:
    """The folder of a job."""
    return RunFolder(job.size.folder / job.name)


def command(job: Job) -> Command:
    """The command that makes a job's model; the same one resumes it."""
    start = None if job.start is None else run_folder(job.start).export
    if job.row.recipe == MERGE:
        given = [f"teacher={TEACHER_PATH}", f"student={start}", f"out={run_folder(job).export}"]
        return ["python", "-m", "lingu_ray.merge", *given, *job.row.settings]
    module = "tuning.sweep" if job.row.recipe in SWEEPS else "lingu_ray.train"
    seeds = [f"name={job.name}", f"seed={job.seed}", f"corpus.seed={job.seed}"]
    student = [] if start is None else [f"student.path={start}"]
    return ["python", "-m", module, _shown(RECIPES / f"{job.row.recipe}.yaml"), *seeds, *student, *job.size.of(job.row)]


def measure_command(one: Comparison) -> Command:
    """The command that measures all models of a comparison that exist."""
    models = [f"{name}={path}" for name, path in compared(one).items()]
    where = [f"tasks={_shown(TASKS)}", f"out={measured_folder(one)}"]
    return ["python", "-m", "lingu_ray.evaluate", *models, *where, *one.size.measure]


def _shown(path: Path) -> str:
    """A file's path, relative to the working directory if it is below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def measured_folder(one: Comparison) -> Path:
    """The folder of a comparison's results; beside it is the MLflow store of the runs."""
    return one.size.folder / f"measured-{one.name}"


def models(job: Job) -> dict[str, Path]:
    """The models of a job and its controls, by their names in a comparison."""
    folder = run_folder(job)
    if job.row.model is None or not is_done(job):
        return {}
    return {job.row.model: folder.export, **{name: control.export for name, control in _controls(folder)}}


def compared(one: Comparison) -> dict[str, Path]:
    """The models of a comparison that exist by now, the teacher first."""
    return {TEACHER: Path(TEACHER_PATH)} | {name: path for job in one.jobs() for name, path in models(job).items()}


def is_measured(one: Comparison) -> bool:
    """Whether all models of the comparison that exist by now were measured, after they were made."""
    result, models = read_recovery(measured_folder(one)), compared(one)
    if result is None or not set(result.measured) >= models.keys():
        return False
    newest = max(path.stat().st_mtime for path in models.values() if path.exists())
    return (measured_folder(one) / FILE).stat().st_mtime >= newest


def is_done(job: Job) -> bool:
    """Whether a job's model and those of its controls exist."""
    folder = run_folder(job)
    if job.row.recipe == MERGE:
        return (folder.export / "config.json").exists()
    if job.row.recipe in SWEEPS:
        return _sweep_is_done(SweepFolder(folder.root))
    return folder.exported_step is not None and all(one.exported_step is not None for _, one in _controls(folder))


def state(job: Job) -> State:
    """The state of a job."""
    folder = run_folder(job).root
    if is_done(job):
        return "done"
    if is_held(folder):
        return "running"
    return "begun" if folder.exists() else "missing"


def borrow_items(one: Comparison) -> None:
    """Copy newer measurements of the same models from other comparisons, so that they are not repeated."""
    own = compared(one).items()
    for other in comparisons(one.size):
        for name, _ in own & compared(other).items() if other != one else ():
            for file in (measured_folder(other) / "items").glob(f"*.{name}.parquet"):
                _copy_newer(file, measured_folder(one) / "items" / file.name)


def _copy_newer(file: Path, target: Path) -> None:
    if not target.exists() or target.stat().st_mtime < file.stat().st_mtime:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, target)


def drop_checkpoints(job: Job) -> None:
    """Remove the checkpoints of a finished job and its controls: they take gigabytes, and only exports are needed."""
    folder = run_folder(job)
    for one in (folder, *(control for _, control in _controls(folder))):
        shutil.rmtree(one.checkpoints, ignore_errors=True)


def _controls(folder: RunFolder) -> Iterator[tuple[str, RunFolder]]:
    """Names and folders of a run's controls, by its settings."""
    if folder.config.exists():
        yield from ((name, control_folder(folder, name)) for name in control_configs(load_yaml(folder.config)))


def _sweep_is_done(folder: SweepFolder) -> bool:
    if not folder.space.exists():
        return False
    space = Space.model_validate(
        strict_yaml.load(folder.space.read_text(encoding="utf-8"), str(folder.space))[0]["space"]
    )
    outcomes = read_outcomes(folder.trials)
    return len(outcomes) == space.size and all(outcome.state == "finished" for outcome in outcomes)
