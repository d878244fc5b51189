"""The files of a sweep's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

TUNE_NAME = "experiment"


@dataclass(frozen=True)
class SweepFolder:
    """Paths of one sweep, `<output_dir>/<name>/`."""

    root: Path

    @property
    def space(self) -> Path:
        """The space and the base's settings that the sweep was started with."""
        return self.root / "space.yaml"

    @property
    def contents(self) -> Path:
        """JSON with the identities of the models, data and items that the trials have in common."""
        return self.root / "contents.json"

    @property
    def trials(self) -> Path:
        """The trials' folders, each a run's."""
        return self.root / "trials"

    @property
    def tune(self) -> Path:
        """Ray Tune's own state."""
        return self.root / ".tune"

    def traceback(self, trial: str) -> Path:
        """The file with the error that ended a trial; the trial's folder where Ray Tune wrote none."""
        written = self.tune / TUNE_NAME / trial / "error.txt"
        return written if written.exists() else self.trials / trial

    @property
    def report(self) -> Path:
        """sweep.html, plots, table.csv, best.yaml."""
        return self.root / "report"

    @property
    def recipe(self) -> Path:
        """The best setting as a recipe, where there is one."""
        return self.report / "best.yaml"
