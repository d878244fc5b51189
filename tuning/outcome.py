"""The outcome of a trial: one small JSON file in its folder, which table, report and MLflow are made from."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal

from lingu_ray.atomic import read_json, write_json
from lingu_ray.errors import UserError
from tuning.space import Space, Values

State = Literal["running", "finished", "stopped", "failed"]
FILE = "trial.json"
_CONSTRAINT_WEIGHT = 10.0


@dataclass(frozen=True)
class Outcome:
    """A trial's settings and its results so far.

    `state`: stopped means early, by the scheduler, or `by_hand`. `recovery`, `retention` and their intervals `_ci` are
    None until measured, and where they have no value: `reasons` says why. `scores`: task name → score of the trial's
    model. `exceptions`: the tasks that its verdict names (`Verdict.exceptions`). `run_id`: in MLflow.
    """

    trial: str
    values: Values
    case: str | None
    seed: int
    state: State = "running"
    step: int = 0
    validation_ce: float | None = None
    recovery: float | None = None
    recovery_ci: list[float] | None = None
    retention: float | None = None
    retention_ci: list[float] | None = None
    scores: dict[str, float] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    exceptions: list[str] = field(default_factory=list)
    seconds: float = 0.0
    run_id: str | None = None
    error: str | None = None
    by_hand: bool = False

    @property
    def has_ended(self) -> bool:
        """Whether nothing more comes of it: what failed or was stopped by hand is started again by the same command."""
        return self.state == "finished" or (self.state == "stopped" and not self.by_hand)

    def write(self, folder: Path) -> None:
        """Write it into the trial's folder, completely or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / FILE, asdict(self))


def read_outcome(folder: Path) -> Outcome | None:
    """The outcome in a trial's folder; None where there is none yet."""
    path = folder / FILE
    if not path.exists():
        return None
    found = read_json(path, "trial", "values", "case", "seed")
    return Outcome(**{f.name: found[f.name] for f in fields(Outcome) if f.name in found})


def read_outcomes(trials: Path) -> list[Outcome]:
    """The outcomes of all trials of a sweep, by name; a trial's folder that was copied beside it is none."""
    found = [(folder.name, read_outcome(folder)) for folder in sorted(trials.glob("*")) if folder.is_dir()]
    return [outcome for name, outcome in found if outcome is not None and outcome.trial == name]


def failures(outcomes: list[Outcome]) -> list[Outcome]:
    """The failed ones, by name."""
    return sorted((outcome for outcome in outcomes if outcome.state == "failed"), key=lambda outcome: outcome.trial)


def all_failed(outcomes: list[Outcome]) -> bool:
    """Whether there are trials, and all of them failed."""
    return bool(outcomes) and all(outcome.state == "failed" for outcome in outcomes)


def reason(error: BaseException) -> str:
    """The error that ended a trial, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    return lines[-1] if isinstance(error, UserError) else f"{type(error).__name__}: {lines[-1]}"


def score(outcome: Outcome, space: Space) -> float:
    """What a search of one objective maximizes; NaN where it was not measured.

    The objective itself where retention keeps `min_retention`; below, ten times the shortfall is taken off, so that
    the search is drawn back to where vision is kept.
    """
    value = getattr(outcome, space.objectives[0])
    if value is None:
        return math.nan
    shortfall = 0.0 if outcome.retention is None else max(0.0, space.min_retention - outcome.retention)
    return value - _CONSTRAINT_WEIGHT * shortfall
