"""Measure models on language and vision tasks, and report what came back.

python -m lingu_ray.evaluate teacher=LM adapted=VLM distilled=runs/demo/export tasks=arc_easy,piqa,textvqa
python -m lingu_ray.evaluate runs/demo/export tasks=my-tasks.yaml out=scores engine=vllm

MODEL       a folder, a hub id (org/name@v1 for a revision) or a .gguf file; NAME=MODEL gives it a name, else its
            folder or file does. Names of the method enter recovery and retention: distilled; what it is measured
            against, teacher and adapted, or original_vlm and fine_tuned; controls, same_ce and plain_ce. Others are
            measured beside them.
tasks=…     names of the catalog (--help catalog) or lm_eval/NAME, with commas between them; or FILE.yaml with the
            keys of the section `evaluation`. One task's settings are changed by its name: tasks.arc_easy.limit=500
out=DIR     gets report.html, recovery.json, recovery.png and items/*.parquet (default: evaluation). An evaluation that
            was interrupted resumes there; without a MODEL the metrics are computed again from the items.
ray.…       the cluster, and what an engine gets of it (cpus_per_worker, use_gpu, address, …)
tracking.…  MLflow: a run for the evaluation, and one nested under it for each model, with its scores. The store is
            tracking.uri, else $MLFLOW_TRACKING_URI, else mlflow.db beside `out` (where runs lie) or, if there is none
            yet, in it.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from pydantic import Field

from lingu_ray.config import EvaluationConfig, RayConfig, TaskConfig, TrackingConfig, strict_yaml
from lingu_ray.config.command_line import split_arguments
from lingu_ray.config.help_pages import Help
from lingu_ray.config.settings import Settings, parse, read_text
from lingu_ray.config.task_catalog import catalog, listing
from lingu_ray.errors import UserError, run_command
from lingu_ray.paths import OutputFolder, model_path
from lingu_ray.shell import shell_word
from lingu_ray.storage import below, is_file, origin, working_folder

USAGE = "python -m lingu_ray.evaluate MODEL [MODEL ...] [key=value ...] [--help [SECTION]]"


RENAMED_ROLES = {"ce_only": "plain_ce (plain cross-entropy) or same_ce (the run with a KD weight of 0)"}
"""Old names of models that enter the verdict: new ones."""


class EvaluateConfig(EvaluationConfig):
    """Settings of the command."""

    out: OutputFolder = Field(Path("evaluation"), description="folder of the results; a bucket needs tracking.uri")
    ray: RayConfig = RayConfig()
    tracking: TrackingConfig = TrackingConfig()


def main(arguments: list[str]) -> None:
    """Run the command; raises UserError for a mistake of the user."""
    models, config = read_arguments(arguments)

    from lingu_ray.evaluation.item_files import check_settings, measured_models
    from lingu_ray.evaluation.recovery import summarize
    from lingu_ray.evaluation.run import engines_for, evaluate
    from lingu_ray.evaluation.tracking import log_evaluation, open_evaluation
    from lingu_ray.report.evaluation_page import write_evaluation
    from lingu_ray.report.rehearsal import rehearse_evaluation
    from lingu_ray.runtime.run_folder.folder import run_of
    from lingu_ray.runtime.run_folder.run_store import writing_to
    from lingu_ray.runtime.tracking.progress import quiet_libraries
    from lingu_ray.runtime.tracking.store_uri import where_to_look

    quiet_libraries()
    if (run_folder := run_of(config.out)) is not None:
        raise UserError(
            f"out={config.out}: a run's or sweep's own page, scores and records lie there; name another folder, as "
            f"out={below(run_folder, 'evaluation')}. Its own command measures its tasks for its page"
        )
    if is_file(below(config.out, "config.json")):
        raise UserError(
            f"out={config.out}: a model lies there, and what is written would be part of it: name another folder"
        )
    out = working_folder(config.out, "evaluation")
    with writing_to(config.out, "evaluation"):
        compared = list(models) or measured_models(out, config)
        if not compared:
            raise UserError(f"out={config.out}: no answers to these tasks are kept there; name models\nusage: {USAGE}")
        if not models:
            check_settings(out, config, compared)
            engines_for(config, compared, out)
        rehearse_evaluation(config, compared, out)
        with open_evaluation(config.tracking, out, config) as run:
            if models:
                result = evaluate(models, config, out, ray_settings=config.ray)
            else:
                result = summarize(out, compared, config)
            page = write_evaluation(result, out)
            log_evaluation(run, config.tracking, out, result, models)
    print(result.verdict.text)
    print(f"report   {shell_word(origin(page))}\ncompare  {where_to_look(run.uri)}")


def read_arguments(arguments: list[str]) -> tuple[dict[str, Path], EvaluateConfig]:
    """Models by name, and the settings.

    Raises:
        UserError: an option, two models of one name, no tasks, or wrong settings.
    """
    bare, assigned, _ = split_arguments(arguments, evaluate_help())
    named = [(_name_of(path), path) for path in bare]
    settings: Settings[EvaluateConfig] = Settings(EvaluateConfig, {}, "command line")
    overrides = []
    if sum(argument.startswith("tasks=") for argument in assigned) > 1:
        raise UserError("tasks= is given twice, and the second would take the place of the first: give all in one list")
    for argument in assigned:
        key, _, value = argument.partition("=")
        if key == "tasks":
            settings = _with_tasks(value, argument)
        elif key.partition(".")[0] in EvaluateConfig.model_fields:
            overrides.append(argument)
        else:
            _check_no_setting(key, value)
            named.append((key, value))
    config = settings.override(*overrides).validate()
    if not config.tasks:
        raise UserError(f"name the tasks: tasks=arc_easy,piqa or tasks=FILE.yaml\nusage: {USAGE}")
    for name, path in named:
        if name in RENAMED_ROLES:
            raise UserError(f"the model's name {name} is {RENAMED_ROLES[name]} now")
        if not path.strip():
            raise UserError(f"{name}={path}: no model is named: give a folder, a hub id or a .gguf file")
    models = {name: Path(model_path(path)) for name, path in named}
    if len(models) < len(named):
        raise UserError("two models have one name: give them names, as in first=MODEL second=MODEL")
    return models, config


def _check_no_setting(key: str, value: str) -> None:
    """Refuse `engin=vllm`, `limit=100`, `evaluation.blind=true`: no model is meant, unless one lies there."""
    if Path(value).exists():
        return
    own, bare = EvaluateConfig.model_fields, key.removeprefix("evaluation.")
    if bare != key and bare.partition(".")[0] in own:
        meant = [bare]
    elif key in TaskConfig.model_fields:
        meant = [f"tasks.TASK.{key}"]
    else:
        meant = difflib.get_close_matches(key, own, n=1, cutoff=0.8)
    if meant:
        raise UserError(f"{key}={value}: no such setting, and no model lies there; did you mean {meant[0]}={value}?")


def _name_of(path: str) -> str:
    """A model's name where none is given: that of its folder or file, in letters that a name has.

    Raises:
        UserError: it has none of these, as one in Chinese.
    """
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(model_path(path)).name.removesuffix(".gguf")).strip("-")
    if not name:
        raise UserError(f"{path}: a model's name is of letters A to Z, digits, _ and -: give it one, as vlm={path}")
    return name


def _with_tasks(value: str, argument: str) -> Settings[EvaluateConfig]:
    """Settings from a file, or with the tasks that are named, with commas between or as a list of YAML."""
    if value.endswith((".yaml", ".yml")):
        settings = parse(read_text(value), value, EvaluateConfig)
        if "evaluation" in settings.tree:
            raise UserError(
                f"{value}: a file of tasks holds what stands under `evaluation` in a run's file: give it as a file of "
                "its own, without that key"
            )
        return settings
    settings = Settings(EvaluateConfig, {}, "command line")
    given, _ = strict_yaml.load(value, argument)
    names = [name for part in given.split(",") if (name := part.strip())] if isinstance(given, str) else given or []
    settings.put("tasks", names, argument)
    return settings


def evaluate_help() -> Help[EvaluateConfig]:
    """The pages of the command's `--help`."""
    known = f"tasks known by name: {', '.join(catalog())}, lm_eval/NAME"
    return Help(USAGE, __doc__, EvaluateConfig, {"catalog": f"{known}\n{listing()}"})


if __name__ == "__main__":
    run_command(main)
