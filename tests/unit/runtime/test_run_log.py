"""logs/*.jsonl of a run: who said what, where; nothing of it changes what people see."""

import json
import logging
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from lingu_ray.errors import Interrupted, UserError
from lingu_ray.runtime.run_folder.folder import RunFolder
from lingu_ray.runtime.run_folder.run_log import run_log, waits_of_workers
from lingu_ray.runtime.tracking.progress import Progress

log = logging.getLogger("lingu_ray.something")


def lines(folder: RunFolder, name: str = "driver") -> list[dict]:
    """The lines of one file."""
    return [json.loads(line) for line in (folder.logs / f"{name}.jsonl").read_text().splitlines()]


def test_a_line_says_who_where_and_when(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Fields of a line; MLflow's id as soon as it is known; no password; files are continued by the next process."""
    folder = RunFolder(tmp_path)
    caplog.set_level(logging.INFO)
    with run_log(folder, "mine"):
        log.info("tracking at http://me:s3cret@host, %d steps", 3)
        folder.mlflow.write_text(json.dumps({"uri": "", "run_id": "abc"}))
        log.warning("two\nlines")
    with run_log(folder, "mine", rank=1):
        log.info("a worker")
    with run_log(folder, "mine", rank=1, process="teacher"):
        log.info("its teacher")
    with run_log(folder, "mine"):
        log.info("again")
    log.info("outside")
    first, second, third = lines(folder)
    assert first["message"] == "tracking at http://…@host, 3 steps" and first["run_id"] is None
    assert second | {"time": "", "node": ""} == {
        **{"time": "", "level": "WARNING", "run": "mine", "run_id": "abc", "node": "", "rank": None},
        **{"logger": "lingu_ray.something", "message": "two\nlines"},
    }
    assert first["time"].endswith("+00:00") and first["time"] <= second["time"] and first["node"]
    assert third["message"] == "again"
    assert [(one["rank"], one["message"]) for one in lines(folder, "rank-1")] == [(1, "a worker")]
    assert [(one["rank"], one["message"]) for one in lines(folder, "teacher-1")] == [(1, "its teacher")]


@pytest.mark.parametrize(("error", "level"), [(ValueError("bad"), "ERROR"), (Interrupted("saved"), "INFO")])
def test_what_ends_a_run_is_its_last_line(tmp_path: Path, error: Exception, level: str) -> None:
    """With the traceback, and it is raised on."""
    with pytest.raises(type(error)), run_log(RunFolder(tmp_path), "mine", rank=0):
        raise error
    (line,) = lines(RunFolder(tmp_path), "rank-0")
    assert (line["level"], line["message"]) == (level, str(error)) and "Traceback" in line["exception"]


def test_a_full_disk_hides_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What ends the block is raised, not the log's own failure, of which nothing is printed."""
    folder = RunFolder(tmp_path)
    folder.logs.mkdir()
    (folder.logs / "driver.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match="no disk space for the checkpoint"), run_log(folder, "mine"):
        log.warning("a message")
        raise UserError("no disk space for the checkpoint")
    assert capsys.readouterr().err == ""


def test_each_run_has_what_is_shown_of_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of two runs side by side: validations are in the run's own file, and on the terminal once."""
    with run_log(RunFolder(tmp_path / "a"), "a"), run_log(RunFolder(tmp_path / "b"), "b"):
        Progress("a", 4).show({"step": 2, "validation": {"text": {"ce": 1.5}}})
    (line,) = lines(RunFolder(tmp_path / "a"))
    assert line["message"] == "validation at step 2: text 1.500" and not lines(RunFolder(tmp_path / "b"))
    assert capsys.readouterr().err == "a: validation at step 2: text 1.500\n"


def test_a_worker_prints_what_it_printed_before(tmp_path: Path) -> None:
    """Warnings go to standard error, as where nobody set up logging; what is logged for the file alone does not."""
    program = (
        "import logging, pathlib; from lingu_ray.runtime.run_folder.folder import RunFolder; "
        "from lingu_ray.runtime.run_folder.run_log import run_log; log = logging.getLogger('lingu_ray.x')\n"
        f"with run_log(RunFolder(pathlib.Path({str(tmp_path)!r})), 'mine', rank=0):\n"
        "    log.info('quiet'); log.warning('loud')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == "loud\n" and done.stdout == ""
    assert [line["message"] for line in lines(RunFolder(tmp_path), "rank-0")] == ["quiet", "loud"]


def test_what_workers_wait_for_is_known(tmp_path: Path) -> None:
    """Of a worker whose last word is that it waits for something of its own; not of one that waits for the others, or
    has gone on, and not before its line is whole."""
    folder = RunFolder(tmp_path)
    for rank in range(4):
        with run_log(folder, "mine", rank):
            log.info("on cpu")
    waits = logging.getLogger("lingu_ray.waiting")
    for rank, level in enumerate((logging.WARNING, logging.INFO, logging.WARNING)):
        with run_log(folder, "mine", rank):
            waits.log(level, "waiting for its teacher's answer")
    with run_log(folder, "mine", 2):
        log.info("saved step 4")
    with (folder.logs / "rank-3.jsonl").open("a") as file:
        file.write('{"logger": "lingu_ray.waiting", ')
    (told,) = waits_of_workers(folder)
    assert told == f"worker 0 on {platform.node()} is waiting for its teacher's answer"
