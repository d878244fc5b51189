"""Runs whose results go to a bucket: what is whose, and how it gets into the driver's working folder and out of it.

Driver and workers write local folders, as for a run in a folder, but each process has its own, also on one machine; the
bucket is between them. Small files are put as they change (`mirror.py`). Folders of weights are put as a whole, with
the file last that makes them whole: a checkpoint, or an export, without it is none.

    driver ──► config.yaml, initial_model/, report/, …, STOP ──► bucket ──► initial_model/, STOP ──► workers
    driver ◄── metrics as they grow; the rest at the end ◄── bucket ◄── metrics, logs, checkpoints, export ◄── workers
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lingu_ray import storage
from lingu_ray.atomic import whole_file, write_json
from lingu_ray.errors import UserError
from lingu_ray.runtime.run_folder.folder import CHECKPOINT, RunFolder
from lingu_ray.runtime.run_folder.lease import LEASE_FILE, Lease, lease_on
from lingu_ray.runtime.run_folder.mirror import Mirror, repeated

STATE = "state.json"
EXPORT_MARKER = "config.json"
INITIAL_MODEL_MARKER = "tokenizer_config.json"
"""The file of a folder that is put last; without it none of the three is loaded."""

_TREE = re.compile(r"(?P<run>(?:.*?/)??)(?P<tree>checkpoints/[^/]+|export(?:-step-\d+)?|initial_model)/(?P<file>.+)")
_OF_WORKERS = re.compile(
    r"(?P<run>(?:.*/)?)(?:metrics\.jsonl|samples\.jsonl|exported\.json|logs/(?:rank|teacher)-\d+\.jsonl)"
)
_NOBODYS = re.compile(rf"(?:.*/)?(?:\.ray/.*|{re.escape(LEASE_FILE)}|\.(?:[^/]*\.tmp|report-[^/]*)(?:/.*)?)")
_WEIGHTS = (".safetensors", ".bin", ".pt")

log = logging.getLogger(__name__)


@contextmanager
def writing_to(place: Path | str, of: str = "driver") -> Iterator[Lease]:
    """Hold the lease on a place of results; of a location, with its working folder: fetched first, then mirrored.

    `of`: whose working folder, for what one command writes may lie below what another one writes.

    Raises:
        UserError: as `lease_on`; storage does not give or take what it should.
    """
    with lease_on(place) as lease:
        if isinstance(place, Path):
            yield lease
            return
        folder = storage.working_folder(place, of)
        storage.made_cache_folder()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        fetch_run(place, folder)
        with Mirror(folder, place, lease, is_drivers).running():
            yield lease
    shutil.rmtree(folder, ignore_errors=True)


def is_drivers(name: str) -> bool:
    """Whether the driver's mirror puts a file of its working folder, which may hold several runs."""
    if _NOBODYS.fullmatch(name) or _OF_WORKERS.fullmatch(name):
        return False
    found = _TREE.fullmatch(name)
    return found is None or (found["tree"], found["file"]) == ("export", "README.md")


def fetch_run(location: str, folder: Path, wanted: Callable[[str], bool] = lambda name: True) -> None:
    """Copy a run, or a folder of runs, but for all weights. Who reads the copy finds what is whole, and nothing else.

    Of checkpoints there is the state alone, of a damaged one an empty folder; those that were cut off are warned of.
    `wanted` chooses by name.

    Raises:
        UserError: storage cannot be reached, or refuses.
    """
    sizes = {entry.name: entry.size for entry in storage.entries(location) if wanted(entry.name)}
    storage.get_tree(location, folder, {name: size for name, size in sizes.items() if _is_copied(name, sizes)})
    trees = [found for found in map(_TREE.fullmatch, sizes) if found is not None]
    for run in sorted({found["run"] for found in trees if found["tree"].startswith("checkpoints/")}):
        below = f"{run}checkpoints/"
        of_run = {name.removeprefix(below): size for name, size in sizes.items() if name.startswith(below)}
        for name, state in found_checkpoints(storage.join(location, below), of_run).items():
            write_stub(folder / below / name, state)


def _is_copied(name: str, sizes: Mapping[str, int]) -> bool:
    found = _TREE.fullmatch(name)
    if found is None:
        return not _NOBODYS.fullmatch(name)
    if found["tree"].startswith("checkpoints/"):
        return False
    marker = EXPORT_MARKER if found["tree"].startswith("export") else INITIAL_MODEL_MARKER
    return f"{found['run']}{found['tree']}/{marker}" in sizes and not name.endswith(_WEIGHTS)


def found_checkpoints(location: str, sizes: Mapping[str, int], warn: bool = True) -> dict[str, dict[str, Any] | None]:
    """What `state.json` says of each checkpoint below a location, by name, oldest first; None: it is damaged.

    What has no `state.json`, since its upload was cut off, never was a checkpoint, and is left out; of both kinds is
    warned. `sizes`: bytes of all objects there.
    """
    states: dict[str, dict[str, Any] | None] = {}
    for name in sorted(filter(CHECKPOINT.fullmatch, {name.partition("/")[0] for name in sizes})):
        was_put = f"{name}/{STATE}" in sizes
        if was_put:
            states[name] = _whole_state(location, name, sizes)
        if warn and states.get(name) is None:
            what = "a file is missing or cut off" if was_put else "its upload was cut off"
            log.warning("%s: %s; it is not resumed from", storage.join(location, name), what)
    return states


def newest_step(run: str) -> int:
    """The step of the newest checkpoint of a run at a location that is whole; 0: there is none."""
    location = storage.join(run, "checkpoints")
    sizes = {entry.name: entry.size for entry in storage.entries(location)}
    states = found_checkpoints(location, sizes, warn=False).values()
    return max((state["step"] for state in states if state is not None), default=0)


def _whole_state(location: str, name: str, sizes: Mapping[str, int]) -> dict[str, Any] | None:
    """What `state.json` says of a checkpoint; None where a file is missing, or has another size than was written, or
    where it was itself cut off, or is of another step.
    """
    try:
        state = json.loads(storage.read_bytes(storage.join(location, name, STATE)))
    except ValueError:
        return None
    if not isinstance(state, dict) or state.get("step") != int(name.removeprefix("step-")):
        return None
    files = state.get("files", {}).items()
    return state if all(sizes.get(f"{name}/{file}") == about["bytes"] for file, about in files) else None


def write_stub(folder: Path, state: dict[str, Any] | None) -> None:
    """Write a checkpoint's state without its files, for who asks which checkpoints there are; of a damaged one none."""
    folder.mkdir(parents=True, exist_ok=True)
    if state is not None:
        write_json(folder / STATE, {key: value for key, value in state.items() if key != "files"})


def put_initial_model(folder: RunFolder) -> None:
    """Put a run's initial model, where its results go to a bucket: the workers load it from there."""
    if isinstance(location := storage.origin(folder.initial_model), str):
        storage.put_tree(folder.initial_model, location, INITIAL_MODEL_MARKER)


@contextmanager
def following(folder: RunFolder) -> Iterator[None]:
    """While the workers train in the block, copy their records into the driver's working folder; then all the rest."""
    location = folder.place
    if isinstance(location, Path):
        yield
        return
    records = GrowingCopy(storage.join(location, folder.metrics.name), folder.metrics)
    try:
        with repeated(records.update, f"{location}: progress is not shown"):
            yield
    except BaseException:
        with suppress(UserError):
            _fetch_results(location, folder, records)
        raise
    _fetch_results(location, folder, records)


def _fetch_results(location: str, folder: RunFolder, records: GrowingCopy) -> None:
    for old in (folder.checkpoints, folder.export):
        shutil.rmtree(old, ignore_errors=True)

    def is_workers(name: str) -> bool:
        found = _TREE.fullmatch(name) or _OF_WORKERS.fullmatch(name)
        return found is not None and not found["run"] and name != folder.metrics.name

    fetch_run(location, folder.root, is_workers)
    records.update()


class GrowingCopy:
    """A local copy of an object of lines, to which lines are added; one that was cut is replaced."""

    def __init__(self, location: str, path: Path):
        self.location, self.path = location, path
        self.version: str | None = None

    def update(self) -> None:
        """Fetch what was added since the last call. Raises UserError where storage does not answer."""
        try:
            version = storage.version(self.location)
            if version != self.version:
                self._fetch()
                self.version = version
        except FileNotFoundError:
            return

    def _fetch(self) -> None:
        known = self.path.read_bytes() if self.path.exists() else b""
        newest = known[known.rfind(b"\n", 0, -1) + 1 :]
        added = self._lines(len(known) - len(newest))
        if newest and added.startswith(newest):
            with self.path.open("ab") as file:
                file.write(added[len(newest) :])
            return
        with whole_file(self.path) as temporary:
            temporary.write_bytes(self._lines(0))

    def _lines(self, start: int) -> bytes:
        """Complete lines from byte `start` on."""
        content = storage.read_bytes(self.location, start)
        return content[: content.rfind(b"\n") + 1]
