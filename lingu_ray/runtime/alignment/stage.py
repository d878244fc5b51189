"""The alignment of a run's initial model (`align`), on the driver's side: found, shared with controls, or started.

Its result lies with the initial model, in a folder that is whole or not there: the weights that it changed, and a
record. A run that was interrupted before starts it again.
"""

from __future__ import annotations

import logging
import math
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from safetensors.torch import load_file
from transformers import PreTrainedModel

from lingu_ray import storage
from lingu_ray.atomic import read_json, whole_folder, write_json
from lingu_ray.config import AlignConfig, Config
from lingu_ray.content import fingerprint
from lingu_ray.corpus.store import Corpus
from lingu_ray.errors import UserError, user_error
from lingu_ray.live import LiveLine
from lingu_ray.runtime.alignment.process import AlignJob, aligned_student
from lingu_ray.runtime.cluster.capacity import uses_gpu, worker_resources
from lingu_ray.runtime.cluster.connect import threads
from lingu_ray.runtime.cluster.memory import explained
from lingu_ray.runtime.controls import run_of_control
from lingu_ray.runtime.resume import STUDENT, check_loaded_models, trained_steps
from lingu_ray.runtime.run_folder.folder import RunFolder
from lingu_ray.waiting import RAY_STATUS, waiting

log = logging.getLogger(__name__)

AlignmentRecord = dict[str, Any]
"""The record of an alignment."""

_LESS_MEMORY = "lower train.tokens_per_micro_batch or align.max_rows (what is kept of its pictures takes memory)"
_TELLING = 50
"""Held-out answers from which a doubt is about the model: by then two standard errors are at most 0.14."""


def align(config: Config, folder: RunFolder, corpus: Corpus, corpus_fingerprint: str) -> None:
    """Align the run's initial model, unless that was done. Ray must be running; all other checks have passed.

    A control takes the alignment of its run, so that both start from the same model; a run takes that of one beside it,
    as trials of a sweep are, where both would be equal.

    Raises:
        UserError: the corpus has nothing to align by, or the process that does it died.
    """
    if config.align is None:
        return
    identity, found = _identity(config, folder, corpus_fingerprint), read_alignment(folder)
    if found and (found["identity"] == identity or trained_steps(folder)):
        log.info("%s: aligned before", config.name)
        return
    if (equal := _equal_one(folder, identity)) is not None:
        other, record = equal
        local = other.aligned_weights
        if not local.exists():
            local = Path(storage.local_copy(str(storage.origin(local))))
        _keep(folder, local.read_bytes(), record)
        log.info("%s: aligned with %s", config.name, other.root.name)
        return
    check_loaded_models(config, folder, [STUDENT])
    result = _run(config, config.align, folder, corpus)
    record = {"identity": identity, **result["record"]}
    _keep(folder, result["weights"], record)
    _say(config.name, record)


def read_alignment(folder: RunFolder) -> AlignmentRecord | None:
    """The record of a run's alignment; None where there is none."""
    return read_json(folder.alignment) if folder.alignment.exists() else None


def load_alignment(model: PreTrainedModel, weights: Path) -> None:
    """Give a run's student the weights that the alignment changed, which are in this file, in float32."""
    named = dict(model.named_parameters())
    for name, tensor in load_file(weights).items():
        named[name].data = named[name].data.float().copy_(tensor)


def alignment_figures(record: AlignmentRecord | None) -> dict[str, float]:
    """Shares of held-out answers that are chosen right, over all sources: before, after, and without looking."""
    of_sources = list((record or {}).get("held_out", {}).values())
    answers = sum(one["answers"] for one in of_sources)
    return {
        f"align/accuracy_{name}": sum(one[name] * one["answers"] for one in of_sources) / answers
        for name in ("before", "after", "blind")
        if answers
    }


def _equal_one(folder: RunFolder, identity: str) -> tuple[RunFolder, AlignmentRecord] | None:
    """The run with the alignment of that identity, and its record: the one whose control this is, or one beside it."""
    above = run_of_control(folder.root)
    others = sorted(folder.root.parent.iterdir()) if above is None else [above]
    for other in (RunFolder(root) for root in others if root != folder.root):
        with suppress(OSError, UserError):  # somebody else's, a disk's lost+found, or damaged: it can do without
            if (record := read_alignment(other)) and record["identity"] == identity:
                return other, record
    return None


def _identity(config: Config, folder: RunFolder, corpus: str) -> str:
    """What an alignment follows from."""
    models = read_json(folder.models) | {"from_teacher": config.student.from_teacher}
    return fingerprint([config.align, config.seed, config.train.precision, corpus, models])


def _keep(folder: RunFolder, weights: bytes, record: AlignmentRecord) -> None:
    """Write the alignment, whole or not at all; of a run in a bucket, there too."""
    path = folder.alignment.parent
    with whole_folder(path) as temporary:
        (temporary / folder.aligned_weights.name).write_bytes(weights)
        write_json(temporary / folder.alignment.name, record)
    if isinstance(location := storage.origin(path), str):
        storage.put_tree(path, location, folder.alignment.name)


def _run(config: Config, settings: AlignConfig, folder: RunFolder, corpus: Corpus) -> dict[str, Any]:
    """Align in a process with what a worker gets, and show how far it is; its last word."""
    use_gpu = uses_gpu(config.ray)
    resources = worker_resources(config.ray, use_gpu)
    job = AlignJob(
        *(config, settings, storage.origin(folder.initial_model), corpus.folder),
        device="cuda" if use_gpu else "cpu",
        threads=threads(config.ray, 1),
    )
    # Ray keeps a process whose GPU is asked for by `options`, and with it memory that the run's workers need
    task: Any = ray.remote(max_calls=1)(aligned_student)
    stream = task.options(
        num_cpus=resources["CPU"],
        num_gpus=resources.get("GPU", 0),
        num_returns="streaming",
        scheduling_strategy=PlacementGroupSchedulingStrategy(PlacementGroup.empty()),
    ).remote(job)
    try:
        with explained("align", _LESS_MEMORY):
            return _followed(stream, config.name)
    except RayTaskError as error:
        if (found := user_error(error)) is not None:
            raise found from error
        raise
    except RayError as error:
        raise UserError(
            f"align: its process could not be started, or died (out of memory?): {_LESS_MEMORY}. {error}"
        ) from error
    except BaseException:
        ray.cancel(stream, force=True)
        raise


def _followed(stream: Any, name: str) -> dict[str, Any]:
    """Show the stages on live lines until the stream ends; its last item."""
    stage, item = None, {}
    line: LiveLine | None = None
    with ExitStack() as lines:
        while True:
            with waiting("the alignment's process", RAY_STATUS):
                item = ray.get(next(stream))
            if "stage" not in item:
                break
            if line is None or item["stage"] != stage:
                lines.close()
                stage = item["stage"]
                line = lines.enter_context(LiveLine(f"{name}: aligning, {stage}", item["total"], "step"))
            line.show(item["done"], item["figures"])
    return item


def _say(name: str, record: AlignmentRecord) -> None:
    """Log what was aligned by, and how well held-out pictures choose now; warn where they see nothing."""
    log.info("%s: aligned on %d answers about %d pictures", name, record["answers"], record["pictures"])
    for reason, count in record["left_out"].items():
        log.info("%s: align leaves out %d answers: %s", name, count, reason)
    if not record["held_out"]:
        log.info("%s: no held-out picture has an answer to choose, so sight is not measured", name)
    for source, one in record["held_out"].items():
        log.info(
            "%s: of %d held-out answers of %s pictures choose %.0f %% right, %.0f %% before; the commonest answer is "
            "right for %.0f %%",
            *(name, one["answers"], source, 100 * one["after"], 100 * one["before"], 100 * one["blind"]),
        )
        if (doubt := doubt_of_sight(one)) is not None:
            log.warning(
                "%s: held-out pictures of %s choose no better than the commonest answer: %s", name, source, doubt
            )


def doubt_of_sight(of_source: dict[str, float]) -> str | None:
    """Why a source's held-out answers do not show that the model sees, and what to do; None where they do.

    They do where they are right more often than the commonest answer, by two standard errors.
    """
    blind, answers = of_source["blind"], of_source["answers"]
    if of_source["after"] > blind + 2 * math.sqrt(blind * (1 - blind) / answers):
        return None
    if answers < _TELLING:
        return f"{answers:.0f} answers are too few to tell. Raise corpus.validation_rows"
    return "the model sees nothing there. Give more pictures or align.epochs, or a pretrained vision tower"
