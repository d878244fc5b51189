"""The end of a sweep, tried before its start: its report, drawn from made-up outcomes of two of its settings."""

from __future__ import annotations

import importlib
from itertools import islice

from lingu_ray.config import Config
from lingu_ray.report.rehearsal import rehearse_report, rehearsed
from lingu_ray.runtime.preparation import check_output
from lingu_ray.runtime.tracking.store import check_store
from lingu_ray.runtime.tracking.store_uri import tracking_uri
from lingu_ray.storage import working_folder
from tuning.folder import SweepFolder
from tuning.outcome import Outcome, read_outcomes
from tuning.space import Space, corner_values


def rehearse_sweep(space: Space, base: Config) -> None:
    """Try the store, the report of a trial and that of the sweep, which is removed again.

    Raises:
        UserError: something of it fails.
    """
    check_output(base)
    check_store(tracking_uri(base), base.tracking.experiment)
    rehearse_report(base)
    with rehearsed(f"output_dir={base.output_dir}", working_folder(base.output_dir)) as scratch:
        from tuning.report import write_files

        importlib.import_module("sklearn.inspection")  # which only a sweep of many trials needs
        folder = SweepFolder(scratch / space.name)
        case = next(iter(space.cases), None)
        for number, values in enumerate(islice(corner_values(space), 2)):
            scores = {task.name: 0.5 for task in base.evaluation.tasks}
            outcome = Outcome(f"trial-{number}", values, case, base.seed, "finished", 1, 1.0, 0.5, [0, 1], 1.0, [0, 1])
            outcome.scores.update(scores)
            outcome.write(folder.trials / outcome.trial)
        write_files(space, base, folder, read_outcomes(folder.trials))
