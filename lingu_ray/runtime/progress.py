"""The live line of a run; without a terminal, a clean log line now and then."""

from __future__ import annotations

import logging
import sys
import time

import mlflow  # noqa: F401  (sets its own log level when it is imported)
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from lingu_ray.runtime.metrics import Record

_LOG_EVERY_S = 15.0


def quiet_libraries() -> None:
    """Mute what MLflow and Transformers print beside the live line; their errors still come through."""
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


class Progress:
    """Shows steps as they come in: loss, tokens/s, shares of waiting, time left."""

    def __init__(self, label: str, steps: int, position: int = 0):
        self.label, self.steps = label, steps
        self.live = sys.stderr.isatty()
        self.bar = tqdm(
            total=steps, desc=label, unit="step", position=position, disable=not self.live, dynamic_ncols=True
        )
        self.first: Record | None = None
        self.last_logged = 0.0

    def show(self, record: Record) -> None:
        """Take one record of metrics.jsonl."""
        if "validation" in record:
            ces = "  ".join(f"{source} {entry['ce']:.3f}" for source, entry in record["validation"].items())
            self.say(f"validation at step {record['step']}: {ces}")
            return
        self.first = self.first or record
        if self.live:
            self.bar.update(record["step"] - self.bar.n)
            self.bar.set_postfix_str(_figures(record))
        elif time.monotonic() - self.last_logged > _LOG_EVERY_S or record["step"] == self.steps:
            self.last_logged = time.monotonic()
            self.say(f"step {record['step']}/{self.steps}  {_figures(record)}  {self._time_left(record)}")

    def say(self, message: str) -> None:
        """Print a line beside the live one."""
        self.bar.write(f"{self.label}: {message}", file=sys.stderr)

    def close(self) -> None:
        """Leave the line as it stands."""
        self.bar.close()

    def _time_left(self, record: Record) -> str:
        assert self.first is not None
        done = record["step"] - self.first["step"]
        if not done:
            return ""
        seconds = (record["time"] - self.first["time"]) / done * (self.steps - record["step"])
        return f"ETA {int(seconds) // 60}:{int(seconds) % 60:02d}"


def _figures(record: Record) -> str:
    kd = "" if record["kd"] is None else f"  kd {record['kd']:.3f}"
    return (
        f"loss {record['loss']:.3f}  ce {record['ce']:.3f}{kd}  {record['tokens_per_s']:.0f} tokens/s  "
        f"data {record['data_wait']:.0%}  teacher {record['teacher_wait']:.0%}"
    )
