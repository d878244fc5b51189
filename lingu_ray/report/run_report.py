"""The whole report of a finished run: its page with figures, its model card, and the cards of its controls."""

from __future__ import annotations

import logging
from pathlib import Path

from lingu_ray.config import Config
from lingu_ray.evaluation.results import Recovery
from lingu_ray.report.model_card import write_model_card
from lingu_ray.report.run_page import manifest, write_report
from lingu_ray.runtime.controls import control_configs
from lingu_ray.runtime.run_folder.folder import RunFolder

log = logging.getLogger(__name__)


def write_run_report(config: Config, result: Recovery | None) -> Path:
    """Write model cards and page of a run from its folder; returns the page's path.

    Where the corpus was deleted, model cards stay unchanged, since they show its counts.

    Args:
        config: the run's settings.
        result: what was measured; None where the run was not evaluated.
    """
    folder = RunFolder(config.run_dir)
    counts = manifest(folder.root)
    if counts is None:
        log.warning("%s: the corpus is gone; the model card, which shows its counts, is not written", folder.corpus)
        return write_report(folder.root)
    write_model_card(folder.export, config, result, counts)
    for control in control_configs(config).values():
        write_model_card(RunFolder(control.run_dir).export, control, result, counts, control_of=config.name)
    return write_report(folder.root)
