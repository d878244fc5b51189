"""Records which rows the workers of a run read: `ENVIRONMENT` is added to that of the command."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

_FILE = "LINGU_RAY_ROWS_READ"


def environment(file: Path) -> dict[str, str]:
    """Environment of a command whose workers record their rows in the file; it must be started in this folder."""
    return {_FILE: str(file), "RAY_RUNTIME_ENV_HOOK": "rows_read.with_hook"}


def with_hook(runtime_env: dict[str, Any] | None) -> dict[str, Any]:
    """Called by `ray.init`: the runtime environment with what each worker process does first."""
    env = dict(runtime_env or {})
    variables = {**env.get("env_vars", {}), _FILE: os.environ[_FILE]}
    return {**env, "env_vars": variables, "worker_process_setup_hook": "rows_read.record"}


def record() -> None:
    """Have the readers of this process add a line for each step: step, number of workers, rows."""
    from lingu_ray.corpus.read import StepReader

    begin, following = StepReader.__init__, StepReader.__next__

    def __init__(self: Any, *args: Any, **options: Any) -> None:
        begin(self, *args, **options)
        self.step = options["start_step"]

    def __next__(self: Any) -> Any:
        samples, batches = made = following(self)
        rows = [sample.position for sample in samples] + [position for batch in batches for position in batch.positions]
        line = {"step": self.step, "world": self.world_size, "rank": self.rank, "rows": rows}
        with open(os.environ[_FILE], "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.step += 1
        return made

    StepReader.__init__, StepReader.__next__ = __init__, __next__  # type: ignore[method-assign]


def rows_by_step(file: Path) -> dict[int, list[int]]:
    """The rows of each step, sorted: what its workers read when it was trained last."""
    last: dict[int, dict[int, dict[str, Any]]] = defaultdict(dict)
    for line in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
        if line["rank"] in last[line["step"]] or any(
            other["world"] != line["world"] for other in last[line["step"]].values()
        ):
            last[line["step"]] = {}  # it is trained again
        last[line["step"]][line["rank"]] = line
    return {
        step + 1: sorted(row for line in lines.values() for row in line["rows"]) for step, lines in sorted(last.items())
    }
