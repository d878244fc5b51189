"""Stores that a run cannot use are told before it trains, with setting and cure; what is tried leaves nothing."""

from __future__ import annotations

import multiprocessing
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import mlflow
import pytest
from limits import full_disk
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES as RETRIES

from lingu_ray.atomic import write_text
from lingu_ray.config import TrackingConfig
from lingu_ray.errors import UserError
from lingu_ray.evaluation.tracking import open_evaluation
from lingu_ray.runtime.tracking import sqlite_store
from lingu_ray.runtime.tracking.store import NEWEST_START, artifact_location, check_store, one_retry, open_store


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock is waited for a moment only, and a server asked once."""
    monkeypatch.setattr(sqlite_store, "LOCKED_S", 0.05)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> Path:
    """The database of a store in a folder of its own."""
    folder = tmp_path / "store"
    folder.mkdir()
    return Path(shutil.copy(empty_store, folder / "mlflow.db"))


@contextmanager
def answering(status: int) -> Iterator[str]:
    """The address of a web server that answers everything with this status and a page."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"<html>no MLflow here</html>")

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def written(path: Path, *statements: str) -> None:
    """Change a database."""
    with closing(sqlite3.connect(path)) as database:
        for statement in statements:
            database.execute(statement)
        database.commit()


def test_a_new_database_is_tried_and_not_made(tmp_path: Path) -> None:
    """Its folder is made, and is empty but for that of files; an empty file counts as new."""
    path = tmp_path / "runs" / "mlflow.db"
    check_store(f"sqlite:///{path}", "lingu_ray")
    assert [inner.name for inner in path.parent.iterdir()] == ["mlartifacts"]
    assert not list((path.parent / "mlartifacts").iterdir())
    path.touch()
    check_store(f"sqlite:///{path}", "lingu_ray")
    assert path.stat().st_size == 0


@pytest.mark.slow
def test_a_store_is_written_to(store: Path) -> None:
    """One that is there gets the experiment, and a tag of it; its tables stay, and its files' place is empty."""
    for _ in range(2):
        check_store(f"sqlite:///{store}", "mine")
    found = mlflow.MlflowClient(f"sqlite:///{store}").get_experiment_by_name("mine")
    assert found is not None and NEWEST_START in found.tags
    assert found.artifact_location == artifact_location(f"sqlite:///{store}")
    assert not list((store.parent / "mlartifacts").iterdir())
    with closing(sqlite3.connect(store)) as database:
        assert not database.execute("SELECT 1 FROM sqlite_master WHERE name LIKE '%tried%'").fetchall()


def at_once(call: Callable[[], object], count: int) -> None:
    """Make the call in several threads at the same moment; what one raises is raised."""
    together = threading.Barrier(count)

    def started() -> None:
        together.wait()
        call()

    with ThreadPoolExecutor(count) as threads:
        for future in [threads.submit(started) for _ in range(count)]:
            future.result()


@pytest.mark.slow
def test_runs_that_start_together(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each finds the experiment and its tag, which another makes at the same moment."""
    monkeypatch.setattr(sqlite_store, "LOCKED_S", 20.0)
    uri = f"sqlite:///{store}"
    for name in "abcdefgh":
        at_once(lambda name=name: check_store(uri, name), 6)
    assert {found.name for found in mlflow.MlflowClient(uri).search_experiments()} == {"Default", *"abcdefgh"}


@pytest.mark.slow
def test_runs_that_make_a_store_together(tmp_path: Path) -> None:
    """One process makes the tables, the others wait: MLflow's own migrations fail where two run them."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    start = multiprocessing.get_context("fork")
    together = start.Barrier(3)

    def opened() -> None:
        together.wait()
        open_store(uri).search_experiments()

    processes = [start.Process(target=opened) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]


NEWER = "UPDATE alembic_version SET version_num = 'ffffffffffff'"


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        ((NEWER,), r"a newer MLflow than \S+ made it \(its schema is ffffffffffff\): install that one, or name"),
        ((NEWER, "DROP TABLE trace_tags"), "a newer MLflow than"),
        (("DROP TABLE experiments",), r"this database is not MLflow's \(tables .*name another file"),
    ],
)
def test_a_database_of_something_else(store: Path, statements: tuple[str, ...], message: str) -> None:
    """The tables of a newer MLflow, or of another program, are told apart, and none is added."""
    written(store, *statements)
    before = store.read_bytes()
    with pytest.raises(UserError, match=rf"tracking\.uri=sqlite:///{store}: {message}"):
        check_store(f"sqlite:///{store}", "lingu_ray")
    assert store.read_bytes() == before


def test_what_is_no_database(store: Path, tmp_path: Path) -> None:
    """A text, a folder, and a path below a file."""
    text = tmp_path / "text.db"
    text.write_text("a text that is long enough for the header of a database " * 9)
    with pytest.raises(UserError, match=r"text\.db: SQLite says 'file is not a database'; .* name another file"):
        check_store(f"sqlite:///{text}", "lingu_ray")
    with pytest.raises(UserError, match=r"store is a folder: name a file in it, sqlite:///.*/store/mlflow\.db"):
        check_store(f"sqlite:///{store.parent}", "lingu_ray")
    with pytest.raises(UserError, match=r"text\.db/mlflow\.db: its folder cannot be written .*name another file"):
        check_store(f"sqlite:///{text / 'mlflow.db'}", "lingu_ray")


@pytest.mark.parametrize("there", [True, False], ids=["old store", "new store"])
def test_a_full_disk(store: Path, there: bool) -> None:
    """A database that cannot be written is told, whether it is there or not."""
    path = store if there else store.parent / "new.db"
    with full_disk(), pytest.raises(UserError, match=rf"tracking\.uri=sqlite:///{path}: .*make room, or name another"):
        check_store(f"sqlite:///{path}", "lingu_ray")


def test_a_locked_database(store: Path) -> None:
    """What another writer holds for longer than MLflow waits is told with how to find it."""
    with closing(sqlite3.connect(store, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UserError, match=r"database is locked'; another process holds its lock: .*fuser"):
            check_store(f"sqlite:///{store}", "lingu_ray")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("sqlite://", "a SQLite store is a file: sqlite:///FOLDER/mlflow.db"),
        ("sqlite://runs.db", "a SQLite store is a file"),
        ("postgresql://me:secret@127.0.0.1/db", r"No module named 'psycopg\w*'. Install the database's driver"),
        ("htp://127.0.0.1", "Supported URI schemes are"),
        ("/tmp/mlruns", "is no store any more: sqlite:////tmp/mlruns/mlflow.db names"),
        ("file:///tmp/mlruns", "is no store any more: sqlite:////tmp/mlruns/mlflow.db names"),
    ],
)
def test_addresses_of_no_store(uri: str, message: str) -> None:
    """In memory, of a missing driver, of an unknown kind, and of files, which MLflow takes no more."""
    with pytest.raises(UserError, match=rf"tracking\.uri=.*{message}") as caught:
        check_store(uri, "lingu_ray")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (200, "not in a valid JSON format.* Give the address of a running MLflow server"),
        (401, "401 .* Set MLFLOW_TRACKING_USERNAME"),
        (403, "403 .* Set MLFLOW_TRACKING_USERNAME"),
        (404, "404 .* Give the address of a running MLflow server"),
        (500, "500 .* Give the address of a running MLflow server"),
    ],
)
def test_a_server_that_is_no_mlflow(status: int, message: str) -> None:
    """What a web server answers that is another one, or lets nobody in."""
    with answering(status) as uri, pytest.raises(UserError, match=rf"(?s)tracking\.uri={uri}: .*{message}"):
        check_store(uri, "lingu_ray")


@pytest.mark.parametrize("there", [True, False], ids=["old store", "new store"])
def test_files_that_cannot_be_stored(store: Path, there: bool) -> None:
    """A place for files that cannot be written is told by the experiment, though the database can."""
    (store.parent / "mlartifacts").write_text("no folder")
    uri = f"sqlite:///{store if there else store.parent / 'new.db'}"
    with pytest.raises(UserError, match=r"files of the experiment mine cannot be stored in file:///.*mlartifacts: "):
        check_store(uri, "mine")


def test_threads_that_ask_a_server_at_a_time_all_give_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of a run and its control do: the first to end leaves the other its one retry; what a user set stays."""
    monkeypatch.delenv(RETRIES.name)
    with ExitStack() as first, one_retry():
        first.enter_context(one_retry())
        first.close()
        assert RETRIES.get() == 1
    assert not RETRIES.is_set()
    with ExitStack() as first:
        first.enter_context(one_retry())
        with one_retry():
            first.close()
            assert RETRIES.get() == 1
    assert not RETRIES.is_set()
    monkeypatch.setenv(RETRIES.name, "3")
    with one_retry(), one_retry():
        assert RETRIES.get() == 3
    assert RETRIES.get() == 3


def test_an_experiment_that_was_deleted(store: Path) -> None:
    """It is told at the start of a run too."""
    client = mlflow.MlflowClient(f"sqlite:///{store}")
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(UserError, match=r"tracking\.experiment=gone: it was deleted .* restore"):
        check_store(f"sqlite:///{store}", "gone")


def test_an_evaluation_tries_its_store(store: Path, tmp_path: Path) -> None:
    """Before it measures anything, `evaluate` finds that files cannot be stored, and opens no run."""
    (store.parent / "mlartifacts").write_text("no folder")
    settings = TrackingConfig.model_validate({"uri": f"sqlite:///{store}", "system_metrics": False})
    with pytest.raises(UserError, match="cannot be stored"):
        open_evaluation(settings, tmp_path / "out", settings)
    assert not (tmp_path / "out" / "mlflow.json").exists()


def test_an_evaluation_reads_its_pointers(store: Path, tmp_path: Path) -> None:
    """That of a model, which is needed when all is measured, is told before where it was cut off."""
    settings = TrackingConfig.model_validate({"uri": f"sqlite:///{store}", "system_metrics": False})
    write_text(pointer := tmp_path / "out" / ".mlflow" / "distilled.json", "")
    with pytest.raises(UserError, match=f"{pointer} is cut off"):
        open_evaluation(settings, tmp_path / "out", settings)
