"""Before a run starts: folders are tried, tasks held against sources, the initial model is written, passes are told."""

from __future__ import annotations

import glob
import logging
import os
from pathlib import Path
from typing import Any

from torch import nn

from lingu_ray.atomic import whole_folder, why_unwritable
from lingu_ray.config import Config
from lingu_ray.corpus.order import passes
from lingu_ray.corpus.patterns import is_matched
from lingu_ray.corpus.processor import kept_processor, run_processor
from lingu_ray.corpus.store import Corpus
from lingu_ray.distill.lora import adapted_layers, share_in_experts
from lingu_ray.distill.pair import check_tokenizers
from lingu_ray.errors import UserError
from lingu_ray.paths import is_on_hub
from lingu_ray.runtime.checkpoints.checkpoint import require_space
from lingu_ray.runtime.models.check import check_pair, check_weights
from lingu_ray.runtime.models.export import has_own_code
from lingu_ray.runtime.models.load import (
    empty_student,
    initial_student,
    load_teacher_config,
    load_teacher_tokenizer,
    prepare_student,
)
from lingu_ray.runtime.rehearsal import rehearse_export, rehearse_packing, rehearse_teacher
from lingu_ray.runtime.resume import check_models
from lingu_ray.runtime.run_folder.folder import RunFolder
from lingu_ray.runtime.run_folder.run_store import put_initial_model
from lingu_ray.runtime.tracking.store_uri import tracking_uri
from lingu_ray.storage import check_writable, is_remote

MANY_PASSES = 5
"""Over a source; a run that makes more is warned."""

_WRITTEN = {
    "output_dir": (
        "run/metrics.jsonl",
        "run/config.yaml",
        "run/corpus.json",
        "run/report/report.html",
        "run/report/items/task.model.parquet",
        "run/logs/rank-0.jsonl",
    ),
    "corpus.cache_dir": ("corpus/shard-00000.parquet",),
}
"""What is written below a setting's folder: a file of each kind."""

log = logging.getLogger(__name__)


def prepare_initial_model(config: Config, folder: RunFolder) -> None:
    """Check the pair and write the run's initial model, once."""
    check_pair(config)
    check_weights(config)
    check_models(config, folder)
    if config.train.packing and config.train.attention == "sdpa":
        rehearse_packing(load_teacher_config(config.teacher))
    if not folder.initial_model.exists():
        if config.uses_teacher:
            rehearse_teacher(config.teacher)
        with whole_folder(folder.initial_model, keep_existing=True) as temporary:
            prepare_student(config, temporary)
            _rehearse(config, temporary, folder)
        put_initial_model(folder)
    processor: Any = kept_processor(folder.initial_model, config.student.trust_remote_code)
    check_tokenizers(processor.tokenizer, load_teacher_tokenizer(config.teacher))
    _check_measurable(config, processor)
    if config.train.lora is not None:
        student = empty_student(initial_student(config, folder.initial_model))
        check_adapted(config, student.get_decoder())


def check_adapted(config: Config, decoder: nn.Module) -> None:
    """Check which layers get an adapter; warn where most of the decoder, which one would expect among them, gets none.

    Raises:
        UserError: as `adapted_layers`.
    """
    assert config.train.lora is not None
    adapted_layers(decoder, config.train.lora.targets)
    if not config.train.lora.targets and (share := share_in_experts(decoder)):
        log.warning(
            "%s: train.lora adapts no experts, which are %.0f%% of the decoder's weights and stay as they are: in "
            "Transformers they are no linear layers",
            *(config.name, 100 * share),
        )


def _check_measurable(config: Config, processor: Any) -> None:
    """Raise UserError where tasks are to be answered by a model with code of its own, which no engine runs."""
    student = config.student
    if not config.evaluation.tasks or student.path is None or not student.trust_remote_code:
        return
    if has_own_code(empty_student(student), processor):
        raise UserError(
            f"evaluation.tasks: student.path={student.path} has code of its own, which training runs "
            "(student.trust_remote_code) and evaluation does not: leave the tasks out, and measure the export by other "
            "means"
        )


def _rehearse(config: Config, initial_model: Path, folder: RunFolder) -> None:
    """Try the export, and check that the disk has room for it and for the weights of a checkpoint."""
    processor = run_processor(initial_model, config.student.trust_remote_code)
    needed = rehearse_export(initial_student(config, initial_model), processor)
    if isinstance(folder.place, Path):  # else they are not written here
        require_space(folder.root, needed, "a checkpoint and the export")


def check_output(config: Config) -> None:
    """Refuse folders that cannot be written, or whose content is lost after the run.

    Raises:
        UserError: `output_dir` lies in the copy of a job's working directory, which Ray removes, or in a folder of
            data, or is not writable; it is in a bucket, where no MLflow store can be, and none is named.
    """
    tracking_uri(config)
    for setting, path in (("output_dir", config.output_dir), ("corpus.cache_dir", config.corpora_dir)):
        _check_apart(config, setting, str(path))
        if isinstance(path, str):
            check_writable(path)
            continue
        if "working_dir_files" in path.parts:
            raise UserError(
                f"{setting}={path} lies in the copy of the working directory that Ray made for this job and removes "
                f"after it: give an absolute {setting}=/…, on storage that all nodes share"
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
            check_writable(path)
        except OSError as error:
            why = why_unwritable(path, error)
            raise UserError(f"{setting}={path}: cannot be written: {why}; name another one") from error


def _check_apart(config: Config, setting: str, path: str) -> None:
    """Raise UserError where results would lie in a folder whose files are read, and be read as data."""
    read = {f"corpus.sources.{source.name}.path": source.path for source in config.corpus.sources}
    read |= {f"evaluation.tasks.{task.name}.path": task.path for task in config.evaluation.tasks}
    for name, folder in read.items():
        if not (is_on_hub(folder) or os.path.isfile(folder)) and _is_read_with(path, folder):
            raise UserError(
                f"{setting}={path} lies in {name}={folder}, all of which is read, so that the run's own files would be "
                f"data: name another {setting}, or let `path` name files, by a pattern such as {folder}/*.jsonl"
            )
        if glob.has_magic(folder) and (file := _matched_output(setting, path, folder)):
            raise UserError(
                f"{name}={folder} matches files that runs write below {setting}={path}, such as {file}, which would be "
                f"data: name another {setting}, or let `path` match less"
            )


def _matched_output(setting: str, path: str, pattern: str) -> str | None:
    """A file that runs write below a folder, and that a pattern matches; None where it matches none."""
    above = path if is_remote(path) else os.path.abspath(path)
    return next((file for one in _WRITTEN[setting] if is_matched(file := f"{above}/{one}", pattern)), None)


def _is_read_with(path: str, folder: str) -> bool:
    """Whether a path is that of a folder or lies in it, and is not hidden there."""
    real, above = (one if is_remote(one) else os.path.realpath(one) for one in (path, folder))
    return f"{real}/".startswith(f"{above}/") and "/." not in real[len(above) :]


def check_tasks(config: Config) -> None:
    """Refuse tasks of a mean that ask all rows of a file or split that the run is trained on.

    Raises:
        UserError: there is one; of those with `where` nothing tells whether their rows are others.
    """
    trained = {(source.path, source.subset, source.split): source.name for source in config.training_sources()}
    for task in config.evaluation.tasks:
        name = trained.get((task.path, task.subset, task.split or "train"))
        if name and task.in_mean and task.where is None:
            raise UserError(
                f"evaluation.tasks: {task.name}: asks what the model is trained on, the rows of source {name} "
                f"({task.path}): give it others by `path`, `split` or `where`, or keep it out of the mean by "
                f"evaluation.tasks.{task.name}.in_mean=false"
            )


def say_passes(config: Config, corpus: Corpus, since: int) -> None:
    """Log how often the run passes over each source from step `since` on, with a warning where that is often."""
    steps, rows = config.train.steps - since, config.train.rows_per_step
    seen = passes(corpus.manifest, steps * rows)
    text = ", ".join(f"{name} {count:.2f}" for name, count in seen.items())
    log.info("%s: %d steps of %d rows; passes over %s", *(config.name, steps, rows, text))
    often = [name for name, count in seen.items() if count > MANY_PASSES]
    if often:
        log.warning(
            "%s: more than %d passes over %s: rows seen so often are memorized. Lower train.steps or a source's "
            "weight, or give more data",
            *(config.name, MANY_PASSES, ", ".join(often)),
        )
