"""Export a checkpoint of a run: the model as it was after that step, as a Hugging Face folder.

A run exports its model when it is finished. This does the same with a checkpoint: of a run that was stopped or still
trains, or that was better before its end. It needs neither a cluster nor a GPU, and changes nothing of the run.

RUN is a run's folder, or its location in a bucket; a control's is RUN/controls/same_ce. OUT is a new folder or
location, by default RUN/export-step-N.

  python -m lingu_ray.export runs/mine                      # the newest checkpoint: the one that a resume would use
  python -m lingu_ray.export runs/mine step=best            # the best by validation cross-entropy
  python -m lingu_ray.export runs/mine models/mine step=400
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt
from transformers import PreTrainedModel, ProcessorMixin
from transformers.utils.logging import disable_progress_bar

import lingu_ray
from lingu_ray import storage
from lingu_ray.atomic import require_new_folder, whole_folder
from lingu_ray.config import Config, Section
from lingu_ray.config.command_line import load_yaml, names_and_settings
from lingu_ray.config.help_pages import Help
from lingu_ray.content import file_identity
from lingu_ray.corpus.processor import kept_processor
from lingu_ray.distill.lora import add_adapters
from lingu_ray.distill.student import Student
from lingu_ray.errors import UserError, run_command
from lingu_ray.paths import not_found, output_folder
from lingu_ray.report.model_card import write_model_card
from lingu_ray.report.run_page import manifest
from lingu_ray.runtime.alignment.stage import load_alignment
from lingu_ray.runtime.checkpoints.checkpoint import (
    CheckpointState,
    best_checkpoint,
    checkpoint_folders,
    checkpoints,
    none_is_whole,
    storage_failures_explained,
    written_state,
)
from lingu_ray.runtime.checkpoints.contents import load_weights
from lingu_ray.runtime.controls import run_of_control
from lingu_ray.runtime.models.export import exported_tensors, write_verified
from lingu_ray.runtime.models.load import export_dtype, initial_student, load_student
from lingu_ray.runtime.run_folder.folder import RunFolder
from lingu_ray.runtime.run_folder.run_store import EXPORT_MARKER, fetch_run
from lingu_ray.runtime.tracking.environment import read_environment
from lingu_ray.shell import shell_word


class ExportConfig(Section):
    """Settings of the command."""

    step: PositiveInt | Literal["last", "best"] = Field(
        "last", description="which checkpoint: after so many steps, the newest, or the best by validation cross-entropy"
    )
    trust_remote_code: bool = Field(
        False, description="run model code that comes with the run's student, as the training did"
    )


HELP = Help("python -m lingu_ray.export RUN [OUT] [step=N|best|last]", __doc__, ExportConfig)


@dataclass(frozen=True)
class _Saved:
    """A run's settings, and the checkpoint of it that is exported."""

    config: Config
    folder: RunFolder
    checkpoint: Path
    state: CheckpointState


def main(arguments: list[str]) -> None:
    """Run the command; raises UserError for what the user can fix."""
    names, config = names_and_settings(arguments, HELP)
    if not 1 <= len(names) <= 2:
        raise UserError(f"name a run, and at most one folder to write\nusage: {HELP.usage}")
    run, *out = map(output_folder, names)
    where = export(run, config.step, out[0] if out else None, config.trust_remote_code)
    print(f"wrote {shell_word(where)}")


def export(
    run: Path | str, step: int | str = "last", out: Path | str | None = None, trust_remote_code: bool = False
) -> Path | str:
    """Export the checkpoint of a run's folder or location, whole or not at all; returns where it is.

    `trust_remote_code`: whether code of the student is run that the run's settings trust.

    Raises:
        UserError: no run there, or one of another version; no such checkpoint; code that is not trusted; `out` exists;
            the run's model cannot be loaded; what was written is not the model.
    """
    with _opened(run) as folder:
        saved = _find(run, folder, step)
        if saved.config.student.trust_remote_code and not trust_remote_code:  # the run may be of somebody else
            raise UserError(
                f"{run}: its settings have code run that comes with its student (student.trust_remote_code): add "
                "trust_remote_code=true if you trust whoever wrote it"
            )
        place = storage.below(run, f"export-step-{saved.state.step}") if out is None else out
        _require_new(place, folder)
        if isinstance(place, Path):
            _write(saved, place)
        else:
            _write(saved, folder.root / ".exported")
            storage.put_tree(folder.root / ".exported", place, EXPORT_MARKER)
    return place


@contextmanager
def _opened(run: Path | str) -> Iterator[RunFolder]:
    """The run's folder; of a run in a bucket a copy without weights, which is removed again."""
    if isinstance(run, Path):
        yield RunFolder(run)
        return
    ours = f"export-{os.getpid()}"
    copy = storage.working_folder(run, ours)
    storage.made_cache_folder()
    try:
        copy.mkdir(parents=True)
        fetch_run(run, copy)
        yield RunFolder(copy)
    finally:
        shutil.rmtree(storage.cache_folder() / ours, ignore_errors=True)


def _find(run: Path | str, folder: RunFolder, step: int | str) -> _Saved:
    """The run's settings, and the checkpoint that is asked for, with its weights on this machine."""
    if isinstance(run, Path) and not run.exists():
        raise UserError(not_found(run, "run"))
    if not folder.config.exists():
        raise UserError(f"{run}: no run lies there (no config.yaml); name the folder of a run, such as runs/mine")
    with _of_its_version(run, folder), storage_failures_explained(folder.checkpoints):
        config = load_yaml(folder.config)
        states = _states(run, folder, config)
    if step == "best":
        wanted = [best] if (best := best_checkpoint(folder.checkpoints)) else []
    else:
        wanted = [path for path, state in states.items() if step in ("last", state.step)]
    there = ", ".join(str(state.step) for state in states.values())
    if not wanted:
        what = "no checkpoint was validated" if step == "best" else f"no checkpoint of step {step} is kept"
        raise UserError(f"{run}: {what}; there are those of step {there}: give step=N, or step=last")
    with storage_failures_explained(folder.checkpoints):
        for path in reversed(wanted):
            if (weights := _fetched(run, path)) is not None:
                newest = checkpoint_folders(folder.checkpoints)[-1]
                if step == "last" and path != newest:
                    why = f"{newest.name} is damaged, or not complete; {path.name} is exported"
                    print(f"{run}: the newest checkpoint {why}", file=sys.stderr)
                return _Saved(config, folder, weights, states[path])
    raise UserError(
        f"{run}: the weights of {wanted[-1].name} are damaged, or gone by now; there are those of step {there}"
    )


def _states(run: Path | str, folder: RunFolder, config: Config) -> dict[Path, CheckpointState]:
    """The run's complete checkpoints, oldest first; UserError where there is none."""
    states = dict(checkpoints(folder.checkpoints))
    if not states and (damaged := checkpoint_folders(folder.checkpoints)):
        raise UserError(f"{none_is_whole(run, damaged)}. Put them back from a copy")
    if not states:
        raise UserError(
            f"{run} has no checkpoint: the first one comes after train.checkpoint_every="
            f"{config.train.checkpoint_every} steps, or when the run is stopped by Ctrl-C; a sweep removes those of "
            "trials that have ended"
        )
    return states


@contextmanager
def _of_its_version(run: Path | str, folder: RunFolder) -> Iterator[None]:
    """Where what a run wrote cannot be read, and another version wrote it, the error says so."""
    try:
        yield
    except UserError as error:
        made, own = read_environment(folder.root).get("lingu_ray"), lingu_ray.__version__
        if made in (None, own):
            raise
        raise UserError(
            f"{run} was made by lingu_ray {made}, and this is {own}, which cannot read it: use version {made}\n{error}"
        ) from error


def _fetched(run: Path | str, checkpoint: Path) -> Path | None:
    """A folder with the checkpoint's weights as they were written; None where they are damaged, or gone by now.

    Raises:
        OSError: storage fails, so nothing is known of them.
    """
    try:
        if isinstance(run, str):
            location = storage.join(run, checkpoint.parent.name, checkpoint.name)
            sizes = {e.name: e.size for e in storage.entries(location) if not e.name.startswith("optimizer")}
            checkpoint = checkpoint.with_name(f".{checkpoint.name}")
            storage.get_tree(location, checkpoint, sizes)
        if (written := written_state(checkpoint)) is None:
            return None
        whole = (
            file_identity(checkpoint / name) == file["identity"]
            for name, file in written.get("files", {}).items()
            if name.startswith("model")
        )
        return checkpoint if all(whole) else None
    except FileNotFoundError:  # a run that trains has removed it
        return None


def _require_new(place: Path | str, folder: RunFolder) -> None:
    if str(place) == str(folder.exported_model):
        raise UserError(f"{place} is where the run exports its model when it is finished: name another folder")
    if isinstance(place, Path):
        require_new_folder(place)
    elif storage.entries(place):
        raise UserError(f"{place} exists; name another location, or delete it")


def _write(saved: _Saved, out: Path) -> None:
    """Write the model with its card to a folder, by the code of a run's own export."""
    config = saved.config
    model, processor = _load(saved)
    dtype = export_dtype(config.student)
    tensors = exported_tensors(model, dtype, config.train.lora)
    with whole_folder(out) as temporary:
        write_verified(model, processor, tensors, dtype, temporary)
        _write_card(saved, temporary)


def _load(saved: _Saved) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The student with the checkpoint's weights, and its processor, on the CPU."""
    if not sys.stderr.isatty():
        disable_progress_bar()  # Transformers' own bars
    config, initial_model = saved.config, saved.folder.initial_model
    if isinstance(location := storage.origin(initial_model), str):
        initial_model = storage.fetch_tree(location)
    if (path := config.student.path) is not None and os.path.isabs(path) and not os.path.exists(path):
        raise UserError(
            f"{path}, which the run was started from, is not there: put it back, or write where it lies now into "
            f"{storage.origin(saved.folder.config)}, as student.path"
        )
    model = load_student(initial_student(config, initial_model))
    if config.train.lora is not None:
        add_adapters(Student(model).decoder, **dict(config.train.lora))
    aligned = Path(initial_model) / saved.folder.aligned_weights.relative_to(saved.folder.initial_model)
    if aligned.exists():
        load_alignment(model, aligned)
    load_weights(saved.checkpoint, model)
    return model, kept_processor(initial_model, config.student.trust_remote_code)


def _write_card(saved: _Saved, out: Path) -> None:
    counts, above = manifest(saved.folder.root), run_of_control(saved.folder.root)
    if counts is None:
        print("the corpus is gone; the model card, which shows its counts, is not written", file=sys.stderr)
        return
    config = saved.config.model_copy(update={"output_dir": saved.folder.root.parent})  # where it lies now
    write_model_card(out, config, None, counts, above.name if above else None, saved.state.step)


if __name__ == "__main__":
    run_command(main)
