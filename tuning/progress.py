"""The sweep's progress: a live table on a terminal, else a line for every event; read from the trials' outcomes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from lingu_ray.runtime.run_folder.mirror import repeated
from tuning.kept_models import remove_unwanted
from tuning.outcome import Outcome, read_outcomes
from tuning.results import settings_of
from tuning.space import Space

_ROWS = 20


class SweepProgress:
    """Shows the trials from a thread of its own, and removes the models that are not kept."""

    def __init__(self, space: Space, trials: Path):
        self.space, self.trials = space, trials
        self.shown: dict[str, tuple[Any, ...]] = {}
        console = Console(stderr=True, markup=False, emoji=False)  # labels have brackets of their own
        self.live = Live(console=console, auto_refresh=False) if sys.stderr.isatty() else None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Show how the trials are while the block runs, and once more at its end."""
        with self.live or nullcontext():
            try:
                with repeated(self.update, f"{self.space.name}: trials are not shown"):
                    yield
            finally:
                self.update()

    def update(self) -> None:
        """Draw the table again, or print what changed; remove the models that are not kept."""
        outcomes = read_outcomes(self.trials)
        if self.live is not None:
            self.live.update(self._table(outcomes), refresh=True)
        else:
            for outcome in outcomes:
                seen = (outcome.state, outcome.validation_ce, outcome.recovery)
                if self.shown.get(outcome.trial) != seen:
                    self.shown[outcome.trial] = seen
                    print(self._line(outcome), file=sys.stderr, flush=True)
        remove_unwanted(outcomes, self.space, self.trials)

    def _line(self, outcome: Outcome) -> str:
        numbers = [f"step {outcome.step}", f"validation {_number(outcome.validation_ce, '.3f')}"]
        if outcome.state == "finished":
            numbers = [f"recovery {_number(outcome.recovery, '.1%')}", f"retention {_number(outcome.retention, '.1%')}"]
        words = [f"{outcome.trial}: {outcome.state}", self._label(outcome), *numbers]
        return "  ".join([*words, outcome.error or ""]).rstrip()

    def _table(self, outcomes: list[Outcome]) -> Table:
        states = [outcome.state for outcome in outcomes]
        counts = [f"{len(outcomes)} of {self.space.size} trials started"]
        counts += [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
        table = Table(title=f"{self.space.name}: {', '.join(counts)}")
        for name in ("trial", "setting", "state", "step", "validation", "recovery", "retention"):
            table.add_column(name, justify="left" if name in ("trial", "setting", "state") else "right")
        running = [outcome for outcome in outcomes if outcome.state == "running"]
        done = [o for s in settings_of([o for o in outcomes if o.state != "running"], self.space) for o in s.trials]
        for outcome in [*running, *done][:_ROWS]:
            table.add_row(
                outcome.trial,
                self._label(outcome),
                outcome.state,
                str(outcome.step),
                _number(outcome.validation_ce, ".3f"),
                _number(outcome.recovery, ".1%"),
                _number(outcome.retention, ".1%"),
                style="bold" if outcome.state == "running" else None,
            )
        return table

    def _label(self, outcome: Outcome) -> str:
        (setting,) = settings_of([outcome], self.space)
        return f"{setting.label} seed {outcome.seed}".strip()


def _number(value: float | None, spec: str) -> str:
    return "–" if value is None else format(value, spec)
