"""The live line of long work: a bar on a terminal, a log line now and then elsewhere."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

_LOG_EVERY_S = 15.0
_FIGURES_FIRST = "{desc}: {unit} {n_fmt}/{total_fmt} {elapsed}<{remaining}{postfix} {bar}"  # the bar has what is left


class LiveLine:
    """Shows how many of `total` units are done, of which `done` were so before.

    `position`: which of several lines this is, from the top. `keep`: whether the bar stays when it is closed; without a
    terminal, whether the first and last unit are logged.
    """

    def __init__(self, label: str, total: int, unit: str, done: int = 0, position: int = 0, keep: bool = True):
        self.label, self.total, self.unit, self.first = label, total, unit, done
        self.live = sys.stderr.isatty()
        self.bar = tqdm(
            total=total,
            initial=done,
            desc=label,
            unit=unit,
            position=position,
            leave=keep,
            disable=not self.live,
            dynamic_ncols=True,
            bar_format=_FIGURES_FIRST,
        )
        self.keep = keep
        self.started = time.monotonic()
        self.logged = float("-inf") if keep else self.started

    def show(self, done: int, figures: str = "") -> None:
        """Show that `done` units are done, with `figures` beside the bar."""
        if self.live:
            self.bar.set_postfix_str(figures, refresh=False)
            self.bar.update(done - self.bar.n)
            self.bar.refresh()
        elif time.monotonic() - self.logged > _LOG_EVERY_S or (self.keep and done == self.total):
            self.logged = time.monotonic()
            self.say(
                "  ".join(part for part in (f"{self.unit} {done}/{self.total}", figures, self._left(done)) if part)
            )

    def say(self, message: str) -> None:
        """Print a line beside the live one."""
        self.bar.write(f"{self.label}: {message}", file=sys.stderr)

    def close(self) -> None:
        """Close the line, or remove it (see `keep`)."""
        self.bar.close()

    def _left(self, done: int) -> str:
        if not self.first < done < self.total:
            return ""
        seconds = (time.monotonic() - self.started) / (done - self.first) * (self.total - done)
        return f"ETA {int(seconds) // 60}:{int(seconds) % 60:02d}"

    def __enter__(self) -> LiveLine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
