"""A run's log as JSON lines, beside what people see: `logs/driver.jsonl`, one `logs/rank-N.jsonl` a worker, and one
`logs/teacher-N.jsonl` for the teacher actor of each.

A line has `time` (UTC), `level`, `run`, `run_id` (MLflow's; null before its run is opened), `node`, `rank` (null: the
driver), `logger`, `message`, and `exception` where there is one. Each file has one writer, because appends of several
nodes to one file are lost on network storage; `sort` by `time` puts them together.
"""

from __future__ import annotations

import json
import logging
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

from lingu_ray import waiting
from lingu_ray.atomic import read_json
from lingu_ray.config.flat import without_credentials
from lingu_ray.errors import Interrupted
from lingu_ray.runtime.run_folder.folder import RunFolder
from lingu_ray.runtime.run_folder.records import Record, last_record

log = logging.getLogger(__name__)

SHOWN = logging.getLogger("lingu_ray.shown")
"""What is printed beside a live line; `extra={"run": NAME}` says whose. Reaches the run's file alone."""
SHOWN.propagate = False
SHOWN.setLevel(logging.INFO)


@contextmanager
def run_log(folder: RunFolder, run: str, rank: int | None = None, process: str = "rank") -> Iterator[None]:
    """Write what this process logs to the run's folder, and what ends the block if it raises.

    In a worker (`rank`), or its teacher (`process="teacher"`), INFO messages of lingu_ray are written too, which nobody
    sees there.
    """
    folder.logs.mkdir(parents=True, exist_ok=True)
    name = "driver" if rank is None else f"{process}-{rank}"
    handler = _LastingFile(folder.logs / f"{name}.jsonl", encoding="utf-8")
    handler.setFormatter(_JsonLine(folder, run, rank))
    handler.addFilter(lambda record: getattr(record, "run", run) == run)
    root = logging.getLogger()
    if not root.handlers and logging.lastResort is not None:
        root.addHandler(logging.lastResort)  # which Python takes by itself as long as there is no other
    if rank is not None:
        logging.getLogger("lingu_ray").setLevel(logging.INFO)
    for logger in (root, SHOWN):
        logger.addHandler(handler)
    try:
        yield
    except GeneratorExit:  # the process ends, and the block was not left
        raise
    except BaseException as error:
        handler.handle(_ending(error))
        raise
    finally:
        for logger in (root, SHOWN):
            logger.removeHandler(handler)
        handler.close()


def waits_of_workers(folder: RunFolder) -> list[str]:
    """What workers wait for that have said nothing since; of a run in a bucket, or whose storage fails, nothing."""
    last: list[Record] = []
    with suppress(OSError, ValueError):
        last += map(last_record, sorted(folder.logs.glob("rank-*.jsonl")))
    return [
        f"worker {line['rank']} on {line['node']} is {line['message']}"
        for line in last
        if (line.get("logger"), line.get("level")) == (waiting.__name__, "WARNING")
    ]


class _LastingFile(logging.FileHandler):
    """A log that raises and prints nothing where no disk takes it: of a full one the block's own error tells."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)

    def close(self) -> None:
        with suppress(OSError):
            super().close()


class _JsonLine(logging.Formatter):
    """A log record as one line of JSON, without credentials."""

    def __init__(self, folder: RunFolder, run: str, rank: int | None):
        super().__init__()
        self.folder, self.run, self.rank = folder, run, rank
        self.node = platform.node()
        self.run_id: str | None = None

    def format(self, record: logging.LogRecord) -> str:
        if self.run_id is None and self.folder.mlflow.exists():
            self.run_id = read_json(self.folder.mlflow, "run_id")["run_id"]
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "run": self.run,
            "run_id": self.run_id,
            "node": self.node,
            "rank": self.rank,
            "logger": record.name,
            "message": without_credentials(record.getMessage()),
        }
        if record.exc_info:
            line["exception"] = without_credentials(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False)


def _ending(error: BaseException) -> logging.LogRecord:
    """The last line of a block that raised: an interruption is none of its errors."""
    level = logging.INFO if isinstance(error, Interrupted | KeyboardInterrupt) else logging.ERROR
    found = (type(error), error, error.__traceback__)
    return log.makeRecord(log.name, level, __file__, 0, str(error) or type(error).__name__, (), found)
