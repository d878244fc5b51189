"""What a worker reads and writes of a run's folder: on storage that all nodes share, or in a bucket."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lingu_ray import storage
from lingu_ray.atomic import locked, whole_folder
from lingu_ray.content import file_identity
from lingu_ray.runtime.checkpoints.checkpoint import checkpoints, written_state
from lingu_ray.runtime.run_folder.folder import CHECKPOINT, RunFolder
from lingu_ray.runtime.run_folder.lease import Lease
from lingu_ray.runtime.run_folder.mirror import Mirror
from lingu_ray.runtime.run_folder.run_store import EXPORT_MARKER, STATE, found_checkpoints, write_stub


class WorkerStore:
    """Storage that all nodes share: what is written there is there. `lease`: the driver's."""

    def __init__(self, folder: RunFolder, lease: Lease):
        self.folder, self.lease = folder, lease

    def require_lease(self) -> None:
        """Raise UserError where another driver has taken the run over; may have been read a second ago."""
        self.lease.require()

    def fetch_checkpoints(self) -> None:
        """Bring the newest checkpoint here, before it is loaded. All workers call it."""

    def put_checkpoints(self) -> None:
        """Keep what was saved since, and delete what was removed since. The main worker calls it, from any thread."""

    def put_export(self) -> None:
        """Keep the finished model. The main worker calls it."""


@contextmanager
def opened(place: Path | str, rank: int, lease: Lease) -> Iterator[WorkerStore]:
    """The store of the worker `rank` of the run at a place, until the block ends."""
    if isinstance(place, Path):
        yield WorkerStore(RunFolder(place), lease)
        return
    store = BucketStore(place, rank, lease)
    with store.mirror.running():
        yield store
    store.close()


class BucketStore(WorkerStore):
    """A bucket: this worker has a folder of its own, and what it writes there is put.

    The main worker's thread looks about once a second whether the run shall stop, and whose it is.
    """

    def __init__(self, location: str, rank: int, lease: Lease):
        self.location, self.is_main = location, rank == 0
        self.of_node = storage.working_folder(location, "node")
        super().__init__(RunFolder(storage.working_folder(location, f"rank-{rank}")), lease)
        self.at_checkpoints = storage.join(location, self.folder.checkpoints.name)
        self.whole: set[str] = set()
        self.putting = threading.Lock()
        self.holder = lease.holder()
        self.own = {f"logs/{process}-{rank}.jsonl" for process in ("rank", "teacher")}
        if self.is_main:
            self.own |= {path.name for path in (self.folder.metrics, self.folder.samples, self.folder.exported)}
        self._fetch()
        self.mirror = Mirror(self.folder.root, location, lease, self.own.__contains__, self._look)

    def close(self) -> None:
        """Remove the local files: all of them are in the bucket."""
        shutil.rmtree(self.folder.root, ignore_errors=True)
        shutil.rmtree(self.of_node, ignore_errors=True)

    def require_lease(self) -> None:
        self.lease.require_of(self.holder)

    def fetch_checkpoints(self) -> None:
        sizes = {entry.name: entry.size for entry in storage.entries(self.at_checkpoints)}
        found = found_checkpoints(self.at_checkpoints, sizes, warn=self.is_main)
        states = {name: state for name, state in found.items() if state is not None}
        for name in found.keys() - states.keys():
            write_stub(self.folder.checkpoints / name, None)
        while states:
            name, state = states.popitem()
            of_it = {file.partition("/")[2]: size for file, size in sizes.items() if file.startswith(f"{name}/")}
            self._fetch_checkpoint(name, state, of_it)
            self.whole.add(name)
            copy = self.folder.checkpoints / name
            if all(file_identity(copy / file) == about["identity"] for file, about in state.get("files", {}).items()):
                break
        for name, state in states.items():
            write_stub(self.folder.checkpoints / name, state)
        self.whole |= states.keys()

    def put_checkpoints(self) -> None:
        with self.putting:
            self.lease.require()
            self.mirror.flush()  # the records of a checkpoint's steps are there before it is
            local = {path.name for path, _ in checkpoints(self.folder.checkpoints)}
            for name in sorted(local - self.whole):
                storage.put_tree(self.folder.checkpoints / name, storage.join(self.at_checkpoints, name), STATE)
            there = {entry.name.partition("/")[0] for entry in storage.entries(self.at_checkpoints)}
            for name in filter(CHECKPOINT.fullmatch, there - local):
                storage.delete(storage.join(self.at_checkpoints, name))
            self.whole = local

    def put_export(self) -> None:
        self.lease.require()
        storage.put_tree(self.folder.export, storage.join(self.location, self.folder.export.name), EXPORT_MARKER)

    def _fetch(self) -> None:
        """Make the folder as it was: the initial model, and what this worker adds to."""
        shutil.rmtree(self.folder.root, ignore_errors=True)
        self.folder.root.mkdir(parents=True)
        initial_model = storage.fetch_tree(storage.join(self.location, self.folder.initial_model.name))
        self.folder.initial_model.symlink_to(initial_model)
        found = {entry.name: entry.size for entry in storage.entries(self.location)}
        names = (self.own | {self.folder.mlflow.name, self.folder.models.name}) & found.keys()
        storage.get_tree(self.location, self.folder.root, {name: found[name] for name in names})

    def _fetch_checkpoint(self, name: str, state: dict[str, Any], sizes: dict[str, int]) -> None:
        """Link this node's copy of a checkpoint, which its workers share; another one that was fetched is removed."""
        self.of_node.mkdir(parents=True, exist_ok=True)
        copy = self.of_node / "checkpoint" / name
        with locked(self.of_node / "lock"):
            if written_state(copy) != state or copy not in dict(checkpoints(copy.parent)):
                shutil.rmtree(copy.parent, ignore_errors=True)
                with whole_folder(copy) as temporary:
                    storage.get_tree(storage.join(self.at_checkpoints, name), temporary, sizes)
            shutil.copytree(copy, self.folder.checkpoints / name, copy_function=os.link)

    def _look(self) -> None:
        if self.is_main:
            self.holder = self.lease.holder()
            if storage.is_file(storage.join(self.location, self.folder.stop.name)):
                self.folder.stop.touch()
