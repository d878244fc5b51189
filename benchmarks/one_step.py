"""What benchmarks of a training step share: a run's settings, and the passes of a step's micro-batches."""

from __future__ import annotations

from lingu_ray.config import Config
from lingu_ray.corpus.batch import MicroBatch
from lingu_ray.runtime.training.step import MicroBatches, StepSums


def run_config(
    teacher: str, placement: str, look_ahead: int, precision: str, transport: str = "object_store", of_a_call: int = 1
) -> Config:
    """Settings of a run; its student is made here."""
    return Config.model_validate(
        {
            "name": "benchmark",
            "student": {"path": "made here"},
            "teacher": {
                "path": teacher,
                "placement": placement,
                "look_ahead": look_ahead,
                "transport": transport,
                "micro_batches_per_call": of_a_call,
            },
            "corpus": {"sources": [{"name": "images", "format": "text", "path": "made here", "language_heavy": True}]},
            "train": {"precision": precision},
        }
    )


def add_gradients(micro_batches: MicroBatches, batches: list[MicroBatch]) -> StepSums:
    """Run a step's micro-batches forward and backward, as at the start of a run; no weight changes."""
    plans = [micro_batches.plan(batch) for batch in batches]
    return micro_batches.run(batches, plans, micro_batches.weights(0.0, batches, plans))
