"""Sweep over a base recipe's settings with Ray Tune: which of them bring language back without costing vision.

python -m tuning.sweep demo                              # 2 cores, minutes
python -m tuning.sweep ablation output_dir=runs/ablation
python -m tuning.sweep my-space.yaml trials=32 train.steps=500
python -m tuning.sweep --help                            # what a space is made of
"""

from __future__ import annotations

import logging
import os
import shutil
from fnmatch import fnmatch

from lingu_ray.atomic import check_records, write_text
from lingu_ray.config import Config, strict_yaml
from lingu_ray.config.command_line import is_own, read_recipe, split_arguments
from lingu_ray.config.differences import differences
from lingu_ray.config.facts import MAY_CHANGE
from lingu_ray.config.help_pages import Help
from lingu_ray.config.layout import table, text_width
from lingu_ray.config.settings import changed
from lingu_ray.config.strict_yaml import Key
from lingu_ray.config.tree import settings_with
from lingu_ray.errors import Interrupted, UserError, run_command
from lingu_ray.runtime.run_folder.lease import Lease
from lingu_ray.runtime.run_folder.run_store import writing_to
from lingu_ray.storage import below, origin, working_folder
from tuning.check import check, check_held_out
from tuning.folder import SweepFolder
from tuning.space import Space, read_space, shipped

os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # `tuning.run` has its own, which lets trials save
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the newer one prints tables whatever `verbose` is

log = logging.getLogger(__name__)

_SAME_IN_ALL = (
    "train.steps",
    "train.validate_every",
    "evaluation",
    "demo",
    "tracking",
    "corpus.sources.*",
    "*.path",
    "*.tower",
    "*.role",
)
"""Patterns of what a run may be resumed with, and a sweep may not: trials that have ended had the old value."""
_HOW_MEASURED = ("evaluation.tokens_per_batch", "evaluation.replicas", "evaluation.models_at_once")

USAGE = "python -m tuning.sweep SPACE [key=value ...] [--help [SECTION]]"


def main(arguments: list[str]) -> None:
    """What a sweep consists of, from top to bottom."""
    space, base = load(arguments)
    with writing_to(below(base.output_dir, space.name)) as lease:
        sweep(space, base, lease)


def sweep(space: Space, base: Config, lease: Lease) -> None:
    """Run, or resume, the sweep in the folder that `lease` is on."""
    folder = open_folder(space, base)

    from lingu_ray.runtime.cluster.connect import connect
    from lingu_ray.runtime.tracking.progress import quiet_libraries
    from lingu_ray.runtime.training.precision import settled
    from lingu_ray.train import planned, with_demo
    from tuning.baseline import build_baseline, check_baseline
    from tuning.rehearsal import rehearse_sweep
    from tuning.report import check_trials, write_report
    from tuning.run import run_trials
    from tuning.tracking import SweepRun

    quiet_libraries()
    check_held_out(space, full := planned(base))
    rehearse_sweep(space, full)
    shared = None if base.demo else check_baseline(space, base, folder.root)  # before Ray starts
    connect(base.ray)
    prepared = settled(with_demo(base), folder.root)
    shared = shared and shared.model_copy(update={"train": prepared.train})
    with SweepRun(space, base, folder) as tracked:
        items = build_baseline(space, shared or check_baseline(space, prepared, folder.root))
        try:
            finished = run_trials(space, prepared, folder, items, tracked, lease)
        finally:
            write_report(space, base, folder, tracked)
        if not finished:
            raise Interrupted(f"stopped and saved: run the same command again to resume ({origin(folder.root)})")
        check_trials(folder)


def load(arguments: list[str]) -> tuple[Space, Config]:
    """Space and base of the command line, checked against each other; raises UserError for whatever is wrong.

    `key=value` sets a key of the space where it has such a key, and else of the base, for every trial. A misspelled key
    is the space's where it comes nearer to these.
    """
    names, overrides, _ = split_arguments(arguments, sweep_help())
    if len(names) != 1:
        raise UserError(f"name one space: {', '.join(shipped())}, or a YAML file\nusage: {USAGE}")
    settings = read_space(names[0])
    for_base = [override for override in overrides if not _is_of_space(override.partition("=")[0])]
    space = settings.override(*(override for override in overrides if override not in for_base)).validate()
    recipe = read_recipe(space.base)
    of_the_base = dict(recipe.origins)
    for key, value in space.settings.items():
        recipe.merge(key, value, f"{names[0]}: settings: {key}")
    base = recipe.override(*for_base).validate()
    check(space, base)
    given = {key: origin for key, origin in recipe.origins.items() if of_the_base.get(key) != origin}
    _check_controls(base, given)
    _check_heard(space, base, given)
    _warn_of_draws_alike(space)
    return space, base


def _warn_of_draws_alike(space: Space) -> None:
    """Tell of trials that are bound to train what others do: `choice` draws with replacement."""
    different = space.different_draws
    if space.pbt is None and space.draws > different:
        instead = "" if space.algorithm == "optuna" else ", or list the values by `grid`, which runs each once"
        log.warning(
            "trials: %d draws, of which %d at most differ: the others train alike; lower `trials`%s",
            *(space.draws, different, instead),
        )


def _check_controls(base: Config, given: dict[Key, str]) -> None:
    """Refuse controls that are asked for beside the trials, and log that the base's own are left out.

    `given`: keys of the space and of the command line, with their origins.
    """
    if not base.controls:
        return
    instead = "a case with distill.policy: none is plain_ce, one with distill.w_kd: 0 is same_ce"
    if origin := next((origin for key, origin in given.items() if key[0] == "controls"), None):
        raise UserError(f"{origin}: a sweep trains no controls beside its trials: leave it out; {instead}")
    log.info("controls: none is trained beside the trials, whatever the base has; %s", instead)


def _check_heard(space: Space, base: Config, given: dict[Key, str]) -> None:
    """Refuse a setting for all trials that none has, since each has another value (`given` as above)."""
    in_every_case = set.intersection(*(set(case) for case in space.cases.values())) if space.cases else set()
    settings = changed(base, {}, space.name)
    for key in (*space.search, *sorted(in_every_case)):
        own = settings.key(key, space.name)
        if origin := next((o for setting, o in given.items() if setting[: len(own)] == own), None):
            where = f"search.{key}" if key in space.search else f"every one of the `cases` sets {key}, which"
            raise UserError(f"{origin}: no trial has this value: {where} gives each its own. Leave one of them out")


def _is_of_space(key: str) -> bool:
    return key.partition(".")[0] in Space.model_fields or is_own(key, Space)


def sweep_help() -> Help[Space]:
    """The pages of the command's `--help`."""
    spaces = "\n".join(table(shipped(), text_width()))
    other = "A setting that is not one of these goes to the base: see python -m lingu_ray.train --help"
    return Help(USAGE, f"{__doc__}\nspaces:\n{spaces}\n\n{other}", Space)


def open_folder(space: Space, base: Config) -> SweepFolder:
    """Make the sweep's folder, or check that the one there is this sweep."""
    folder = SweepFolder(working_folder(below(base.output_dir, space.name)))
    check_records(folder.root)
    text = strict_yaml.dump({"space": space, "base": base})
    if folder.space.exists():
        before, now = (
            strict_yaml.load(one, str(folder.space))[0] for one in (folder.space.read_text(encoding="utf-8"), text)
        )
        _check_same_sweep(folder, base.resume, differences(before, now, _may_change()))
    folder.trials.mkdir(parents=True, exist_ok=True)
    write_text(folder.space, text)
    return folder


def _may_change() -> set[str]:
    """The settings of the base that say how trials are computed, not what: cures of what made some of them fail."""
    of_a_run = (key for key in settings_with(MAY_CHANGE) if not any(fnmatch(key, same) for same in _SAME_IN_ALL))
    return {f"base.{key}" for key in (*of_a_run, *_HOW_MEASURED)}


def _check_same_sweep(folder: SweepFolder, resume: str, lines: list[str]) -> None:
    """Refuse a folder in which another sweep was started; what holds no trial yet is started from the beginning."""
    if not any(folder.trials.glob("*/")):
        shutil.rmtree(folder.tune, ignore_errors=True)
        return
    if resume == "never":
        raise UserError(f"{origin(folder.root)} exists and resume=never: choose another name, or remove the folder")
    if lines:
        raise UserError(
            f"{origin(folder.root)} was started with other settings, and cannot be resumed with:\n"
            + "\n".join(f"  {line}" for line in lines)
            + "\nChoose another name=…, or remove the folder to start from the beginning."
        )


if __name__ == "__main__":
    run_command(main)
