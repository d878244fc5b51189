"""A run in Ray's metrics, which Prometheus scrapes on every node: `ray_lingu_NAME{run="…"}`.

Ray keeps the newest value of each and drops it when the worker that set it is gone. All of them take less than 0.1 ms a
step.
"""

from __future__ import annotations

import time
from pathlib import Path

from ray.util.metrics import Gauge

from lingu_ray.config import Config
from lingu_ray.corpus.store import Corpus
from lingu_ray.runtime.run_folder.records import JsonLines, Record

PREFIX = "lingu_"

OF_RECORDS = {
    "step": ("step", "optimizer steps done"),
    "loss": ("loss", "loss of the newest step"),
    "ce": ("ce", "cross-entropy of the newest step, nats a token"),
    "kd": ("kd", "divergence from the teacher of the newest step, nats a token"),
    "validation_ce": ("validation_ce", "cross-entropy of the newest validation, nats a token"),
    "tokens_per_second": ("tokens_per_s", "tokens read a second, over all workers"),
    "step_seconds": ("step_s", "seconds of the newest step"),
    "data_wait_ratio": ("data_wait", "share of the newest step spent waiting for data, mean over workers"),
    "teacher_wait_ratio": ("teacher_wait", "share of the newest step spent waiting for the teacher, mean over workers"),
    "kv_bytes": ("kv_bytes", "KV sent to the teachers in the newest step"),
}
"""Gauges by name: the key in a record of metrics.jsonl, and what it is."""
PLANNED_STEPS = "planned_steps"
REJECTED_ROWS = "rejected_rows"
CHECKPOINT_TIME = "checkpoint_timestamp_seconds"


class MetricsFile(JsonLines):
    """metrics.jsonl of a run, whose newest values are Ray's metrics too. The main worker appends."""

    def __init__(self, path: Path, config: Config, corpus: Corpus):
        super().__init__(path)
        self.config, self.corpus = config, corpus
        self.gauges: dict[str, Gauge] = {}

    def start(self) -> None:
        """Show what is known before the first step."""
        self._set(PLANNED_STEPS, "steps of the whole run", self.config.train.steps)
        for source, counts in self.corpus.manifest["sources"].items():
            rejected = sum(counts["rejected"].values())
            self._set(REJECTED_ROWS, "rows of the corpus that were rejected when it was built", rejected, source=source)
        self.saved()

    def append(self, record: Record) -> None:
        """Add one line and flush it, and show its values."""
        super().append(record)
        for name, (key, meaning) in OF_RECORDS.items():
            if record.get(key) is not None:
                self._set(name, meaning, record[key])

    def saved(self) -> None:
        """Show that all steps so far are saved."""
        self._set(CHECKPOINT_TIME, "Unix time of the newest checkpoint; before it, of the start", time.time())

    def _set(self, name: str, meaning: str, value: float, **labels: str) -> None:
        labels = {"run": self.config.tracking.run_name or self.config.name, **labels}
        if name not in self.gauges:
            self.gauges[name] = Gauge(PREFIX + name, meaning, tuple(labels))
        self.gauges[name].set(value, labels)
