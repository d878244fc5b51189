"""Records of a run as JSON lines: metrics.jsonl (training steps and validations) and samples.jsonl.

The first worker appends; driver, report and tracker read. A resumed run first drops the records of steps after its
checkpoint, so that every step is recorded once.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from lingu_ray.atomic import whole_file
from lingu_ray.errors import UserError

Record = dict[str, Any]


@dataclass(frozen=True)
class LoggedSteps:
    """Step of the newest training record and of the newest validation record; 0 where there is none."""

    training: int
    validation: int

    def with_record(self, record: Record) -> LoggedSteps:
        """The steps after a record, which may be an old one."""
        kind = "validation" if "validation" in record else "training"
        return replace(self, **{kind: max(record["step"], getattr(self, kind))})


@dataclass(frozen=True)
class Newest:
    """The newest steps, and when a record was made last: one of a step that is trained again is new, too.

    Not by time alone: a clock may be set back.
    """

    steps: LoggedSteps
    time: float

    def with_record(self, record: Record) -> Newest:
        """The newest after a record, which may be an old one."""
        return Newest(self.steps.with_record(record), max(record["time"], self.time))


class JsonLines:
    """A file that one process appends to."""

    def __init__(self, path: Path):
        self.path = path

    def append(self, record: Record) -> None:
        """Add one line and flush it. Raises OSError with the path, also where a disk is full."""
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            error.filename = error.filename or str(self.path)  # which that of a write does not have
            raise

    def drop_after(self, step: int) -> None:
        """Remove the records after `step`."""
        if not self.path.exists():
            return
        with whole_file(self.path) as temporary, temporary.open("wb") as file:
            file.writelines(line for line, record in _lines(self.path) if record["step"] <= step)


def read_records(path: Path) -> list[Record]:
    """All records of the file; a last line that a crash truncated is ignored. Raises UserError for another one."""
    return [record for _, record in _lines(path)] if path.exists() else []


def last_record(path: Path) -> Record:
    """The last whole record of the file; empty where there is none."""
    with path.open("rb") as file:
        whole = [line for line in deque(file, 2) if _is_whole(line)]
    return json.loads(whole[-1]) if whole else {}


def _lines(path: Path) -> Iterator[tuple[bytes, Record]]:
    """The whole lines of the file with their records, one at a time: those of a long run would fill the memory."""
    with path.open("rb") as file:
        for at, line in enumerate(takewhile(_is_whole, file), 1):
            yield line, _record(line, f"{path}:{at}")


def _is_whole(line: bytes) -> bool:
    return line.endswith(b"\n")


def _record(line: bytes, where: str) -> Record:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: the line is cut off, or no JSON ({error}): remove it, or put it back") from error
    if not isinstance(found, dict):
        raise UserError(f"{where}: the line is no record, but {type(found).__name__}: remove it, or put it back")
    return found


class RecordReader:
    """Reads the records that were appended since the last call, none twice, also after the file was truncated.

    `known`: these records count as read. With `LoggedSteps` each step is read once, with `Newest` again where it is
    trained again.
    """

    def __init__(self, path: Path, known: LoggedSteps | Newest | None = None):
        self.path = path
        self.offset, self.inode = 0, 0
        self.newest: LoggedSteps | Newest = LoggedSteps(0, 0) if known is None else known

    def new_records(self) -> list[Record]:
        """The records that were not read yet.

        Raises:
            OSError, ValueError: storage fails; the next call reads them.
        """
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return []
        records, newest = [], self.newest
        with file:
            inode = os.fstat(file.fileno()).st_ino
            offset = self.offset if inode == self.inode else 0  # another file: truncated, and so replaced
            file.seek(offset)
            for line in takewhile(_is_whole, file):
                record, before = json.loads(line), newest
                newest = before.with_record(record)
                if newest != before:
                    records.append(record)
                offset += len(line)
        self.offset, self.inode, self.newest = offset, inode, newest
        return records


def named_numbers(record: Record) -> Iterator[tuple[str, float]]:
    """A record's metrics by the names that trackers have; validation by source becomes `validation_ce.<source>`."""
    for name, value in record.items():
        if name == "validation":
            yield from ((f"validation_ce.{source}", entry["ce"]) for source, entry in value.items())
        elif name not in ("step", "time") and value is not None:
            yield name, float(value)
