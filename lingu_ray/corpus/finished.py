"""Progress of a build: a small file for each file split that was read.

Tasks on all nodes write these files into the build's folder, or as objects into its bucket.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lingu_ray import storage
from lingu_ray.corpus.store import writing
from lingu_ray.errors import UserError
from lingu_ray.live import LiveLine

LOOK_EVERY_S, LIST_EVERY_S = 0.5, 5.0  # in a folder, in a bucket


@dataclass(frozen=True)
class FinishedSplits:
    """Finished file splits, each a file in `folder` that is named by its index and rows."""

    folder: Path | str

    def add(self, index: int, rows: int) -> None:
        """Note that a file split is read."""
        with writing(self.folder, f"{index}-{rows}") as path:
            path.touch()

    def _names(self) -> list[str]:
        found = self.folder.glob("*") if isinstance(self.folder, Path) else storage.entries(self.folder)
        return [file.name for file in found]

    def _delete(self) -> None:
        if isinstance(self.folder, Path):
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            storage.delete(self.folder)

    @contextmanager
    def shown(self, splits: int) -> Iterator[None]:
        """Show in a live line how many of `splits` are finished while the block runs; then delete the files."""
        self._delete()  # files of a killed build, in a bucket
        ended = threading.Event()

        def follow() -> None:
            with LiveLine("corpus: reading", splits, "file split", keep=False) as line:
                while not ended.wait(LOOK_EVERY_S if isinstance(self.folder, Path) else LIST_EVERY_S):
                    with suppress(UserError):  # storage fails: the tasks report it
                        rows = [int(name.partition("-")[2]) for name in self._names()]
                        line.show(len(rows), f"{sum(rows)} rows")

        thread = threading.Thread(target=follow)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
        self._delete()
