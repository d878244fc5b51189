"""The live line of a run; without a terminal, a clean log line now and then."""

from __future__ import annotations

import logging
import sys

import mlflow  # noqa: F401  (sets its own log level when it is imported)
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from lingu_ray.live import LiveLine
from lingu_ray.runtime.run_folder.records import Record
from lingu_ray.runtime.run_folder.run_log import SHOWN


def quiet_libraries() -> None:
    """Mute what MLflow and Transformers print beside the live line, except errors."""
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # tracebacks of what it raises
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # "generated new fontManager", a font without bold
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


class Progress:
    """Shows steps as they come in: loss, tokens/s, shares of waiting, time left; validations on lines of their own."""

    def __init__(self, label: str, steps: int):
        self.label, self.steps, self.position = label, steps, 0
        self.line: LiveLine | None = None
        self.workers: int | None = None

    def show(self, record: Record) -> None:
        """Take one record of metrics.jsonl."""
        if "validation" in record:
            ces = "  ".join(f"{source} {entry['ce']:.3f}" for source, entry in record["validation"].items())
            self.say(f"validation at step {record['step']}: {ces}")
            return
        if self.line is None:  # when its first step is done: neither that nor earlier ones count for the speed
            self.line = LiveLine(self.label, self.steps, "step", done=record["step"], position=self.position)
        before, self.workers = self.workers, record.get("workers")
        if before not in (None, self.workers):
            self.say(f"workers from step {record['step']} on: {self.workers}, {before} before")
        self.line.show(record["step"], _figures(record))

    def say(self, message: str) -> None:
        """Print a line beside the live one."""
        tqdm.write(f"{self.label}: {message}", file=sys.stderr)
        SHOWN.info(message, extra={"run": self.label})

    def close(self) -> None:
        """Leave the line as it stands."""
        if self.line is not None:
            self.line.close()


def _figures(record: Record) -> str:
    loss, ce, kd = ("" if record[name] is None else f"{name} {record[name]:.3f} " for name in ("loss", "ce", "kd"))
    return (
        f"{loss or 'skipped '}{ce}{kd}data {record['data_wait']:.0%} teacher {record['teacher_wait']:.0%} "
        f"{record['tokens_per_s']:.0f} tokens/s"
    )
