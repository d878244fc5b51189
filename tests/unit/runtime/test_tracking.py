"""MLflow runs in a real store: opened, resumed, replaced where they are gone, nested, and tagged with their origin."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import (
    MLFLOW_GIT_COMMIT,
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_SOURCE_NAME,
    MLFLOW_SOURCE_TYPE,
    MLFLOW_USER,
)
from sqlalchemy import make_url

from lingu_ray.config import TrackingConfig
from lingu_ray.config.command_line import load_config
from lingu_ray.config.flat import flat, without_credentials
from lingu_ray.errors import Interrupted, UserError
from lingu_ray.runtime.tracking.command import COMMAND, command_line, source_tags
from lingu_ray.runtime.tracking.mlflow_run import MlflowRun, newest_settings
from lingu_ray.runtime.tracking.progress import quiet_libraries
from lingu_ray.runtime.tracking.store import check_store
from lingu_ray.runtime.tracking.store_uri import store_uri, tracking_uri, where_to_look


@pytest.fixture(scope="module")
def uri(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store that the tests of this file share."""
    return f"sqlite:///{shutil.copy(empty_store, tmp_path_factory.mktemp('store'))}"


def opened(uri: str, folder: Path, name: str = "run", **settings: object) -> MlflowRun:
    """The MLflow run of a folder."""
    return MlflowRun(uri, TrackingConfig.model_validate(settings), folder / "mlflow.json", name, {"a.b": "1"})


def test_a_run_is_found_again(uri: str, tmp_path: Path) -> None:
    """The second opening is the same run, with its metrics, and its tags as they are now."""
    with opened(uri, tmp_path, tags={"kept": "1", "changed": "1"}) as first:
        first.log_figures({"recovery": 0.5, "retention": None})
    with opened(uri, tmp_path, tags={"kept": "1", "changed": "2"}) as second:
        assert second.resumed and second.run_id == first.run_id
        assert second.client.get_run(second.run_id).info.status == "RUNNING"
    run = second.client.get_run(second.run_id)
    assert run.info.status == "FINISHED" and run.info.run_name == "run" and run.data.params == {"a.b": "1"}
    assert run.data.metrics == {"recovery": 0.5}
    assert run.data.tags["kept"] == "1" and run.data.tags["changed"] == "2"


def test_a_database_that_fails_prints_no_tracebacks(
    empty_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it does not take is raised, and told by who logs; MLflow itself would print a page at each attempt."""
    quiet_libraries()
    store = shutil.copy(empty_store, tmp_path / "mlflow.db")
    with opened(f"sqlite:///{store}", tmp_path) as run, closing(sqlite3.connect(store)) as database:
        database.execute("DROP TABLE metrics")
        with pytest.raises(MlflowException, match="no such table: metrics"):
            run.log_figures({"recovery": 0.5})
    assert "Traceback" not in capsys.readouterr().err


def test_settings_that_changed_on_resume_are_tags(uri: str, tmp_path: Path) -> None:
    """Parameters stay; a tag tells the newest value, also where it came back, or where the setting is no more."""

    def settings_after(params: dict[str, str]) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
        with MlflowRun(uri, TrackingConfig(), tmp_path / "mlflow.json", "run", params) as one:
            pass
        run = one.client.get_run(one.run_id)
        tags = {key: value for key, value in run.data.tags.items() if key.startswith("resumed.")}
        return run.data.params, tags, newest_settings(run)

    first = {"train.steps": "8", "ray.num_workers": "1", "seed": "0"}
    assert settings_after(first) == (first, {}, first)
    longer = {"train.steps": "16", "ray.num_workers": "2", "seed": "0"}
    tags = {"resumed.train.steps": "16", "resumed.ray.num_workers": "2"}
    assert settings_after(longer) == (first, tags, longer)
    back = {"train.steps": "16", "ray.num_workers": "1", "new": "x"}
    tags |= {"resumed.ray.num_workers": "1", "resumed.new": "x", "resumed.seed": "–"}
    assert settings_after(back) == (first, tags, back)


def test_another_experiment_on_resume_is_told(uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """MLflow moves no run, so it stays where it was started; without the file there is a new one in the other."""
    with opened(uri, tmp_path, experiment="first") as one, opened(uri, tmp_path, experiment="first"):
        pass
    assert not caplog.records
    with opened(uri, tmp_path, experiment="second") as two:
        assert two.run_id == one.run_id
    assert "tracking.experiment=second: the run stays in first" in caplog.text and "mlflow.json" in caplog.text
    (tmp_path / "mlflow.json").unlink()
    with opened(uri, tmp_path, experiment="second") as three:
        assert three.client.get_experiment(three.experiment_id).name == "second"


def test_many_tags(uri: str, tmp_path: Path) -> None:
    """More tags than MLflow takes at once; the environment's have a prefix of their own."""
    run = opened(uri, tmp_path)
    run.log_environment({str(i): f"value {i}" for i in range(250)})
    tags = run.client.get_run(run.run_id).data.tags
    assert [tags[f"environment.{i}"] for i in range(250)] == [f"value {i}" for i in range(250)]


def test_a_run_is_found_again_where_its_database_has_another_path(uri: str, tmp_path: Path) -> None:
    """As where the folder of runs was moved, or is reached by a link: the id of a run tells it from all others."""
    first = opened(uri, tmp_path)
    database = Path(uri.removeprefix("sqlite:///"))
    (tmp_path / "link").symlink_to(database.parent)
    again = opened(f"sqlite:///{tmp_path / 'link' / database.name}", tmp_path)
    assert again.run_id == first.run_id and again.resumed


@pytest.mark.parametrize("loss", ["deleted", "unknown", "another store"])
def test_a_new_run_is_started_where_the_old_one_is_gone(
    uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, loss: str
) -> None:
    """A run in the trash, an unknown one and one of another store are replaced, and one line says so."""
    first = opened(uri, tmp_path)
    if loss == "deleted":
        first.client.delete_run(first.run_id)
    else:
        there = {"uri": "sqlite:///elsewhere.db" if loss == "another store" else uri, "run_id": "0" * 32}
        (tmp_path / "mlflow.json").write_text(json.dumps(there))
    with caplog.at_level(logging.INFO, "lingu_ray"):
        second = opened(uri, tmp_path)
    (said,) = [record.getMessage() for record in caplog.records if record.name.startswith("lingu_ray")]
    assert "no such run" in said and "a new one is started" in said and "\n" not in said
    assert second.run_id != first.run_id and not second.resumed
    assert json.loads((tmp_path / "mlflow.json").read_text())["run_id"] == second.run_id


def test_what_cannot_be_opened_is_the_users_to_mend(uri: str, tmp_path: Path) -> None:
    """A store of an unknown kind, with the password left out, a bad file, and an experiment that was deleted."""
    with pytest.raises(UserError, match=r"tracking\.uri=nosuch://…@host: MLflow cannot open it") as caught:
        opened("nosuch://me:secret@host", tmp_path)
    assert "secret" not in str(caught.value)
    (tmp_path / "bad.db").write_text("this is no database, but a text that is long enough for a header of one " * 9)
    with pytest.raises(UserError, match=r"bad\.db: MLflow cannot open it"):
        opened(f"sqlite:///{tmp_path / 'bad.db'}", tmp_path)
    with pytest.raises(UserError, match=r"bad\.db/mlflow\.db: MLflow cannot open it"):
        opened(f"sqlite:///{tmp_path / 'bad.db' / 'mlflow.db'}", tmp_path)
    gone = opened(uri, tmp_path, experiment="gone")
    gone.client.delete_experiment(gone.experiment_id)
    with pytest.raises(UserError, match=r"tracking\.experiment=gone: it was deleted .* restore"):
        opened(uri, tmp_path, experiment="gone")


@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (Interrupted("saved"), "KILLED"), (UserError("bad"), "FAILED")]
)
def test_a_run_ends_as_its_work_does(uri: str, tmp_path: Path, error: Exception | None, status: str) -> None:
    """Whatever ends the block is seen in MLflow, and is raised on."""
    run = opened(uri, tmp_path)
    try:
        with run:
            if error is not None:
                raise error
    except (Interrupted, UserError) as caught:
        assert caught is error
    assert run.client.get_run(run.run_id).info.status == status


def test_a_run_is_nested_under_its_parent(uri: str, tmp_path: Path) -> None:
    """Also under a new one, where that was deleted; its name is the settings', and its command that of this process."""
    parent = opened(uri, tmp_path / "parent")
    parent.client.set_tag(parent.run_id, COMMAND, "python -m something")
    child = opened(uri, tmp_path / "child", parent=tmp_path / "parent", run_name="parent/control")
    found = child.client.get_run(child.run_id)
    assert found.info.run_name == "parent/control"
    assert found.data.tags[MLFLOW_PARENT_RUN_ID] == parent.run_id
    assert found.data.tags[COMMAND] == command_line()
    parent.client.delete_run(parent.run_id)
    again = opened(uri, tmp_path / "parent")
    child = opened(uri, tmp_path / "child", parent=tmp_path / "parent")
    assert child.resumed and child.client.get_run(child.run_id).data.tags[MLFLOW_PARENT_RUN_ID] == again.run_id


def test_a_parent_that_is_not_there_is_none(uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A run whose parent was never tracked stands by itself, with the origin of this process, and a line says so."""
    with caplog.at_level(logging.INFO, "lingu_ray"):
        child = opened(uri, tmp_path / "child", parent=tmp_path / "nowhere")
    tags = child.client.get_run(child.run_id).data.tags
    assert "nowhere: no run of it in" in caplog.text and MLFLOW_PARENT_RUN_ID not in tags
    assert tags[COMMAND] == command_line()


def test_source_is_the_command_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module is named as it was started, words are quoted, passwords and tokens are left out."""
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", type("Spec", (), {"name": "lingu_ray.train"}))
    given = ["my.yaml", "distill.w_kd={start: 1, end: 2}", "tracking.uri=http://me:pw@host:5000", "tags.API_TOKEN=abc"]
    monkeypatch.setattr(sys, "argv", ["/somewhere/lingu_ray/train.py", *given])
    assert command_line() == (
        "python -m lingu_ray.train my.yaml 'distill.w_kd={start: 1, end: 2}' "
        "'tracking.uri=http://…@host:5000' 'tags.API_TOKEN=…'"
    )
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/lingu-ray", "train"])
    assert command_line() == "lingu-ray train" and source_tags()[MLFLOW_SOURCE_NAME] == "lingu-ray"


def test_source_has_user_and_commit_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a git checkout the commit is the one checked out, without what its remote's address holds of credentials."""
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    remote = ["remote", "add", "origin", "https://me:s3cret@example.org/project.git"]
    for arguments in (["init", "-q"], remote, [*identity, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "main.py").touch()
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "main.py")])  # whose checkout MLflow looks at
    tags = source_tags()
    assert "s3cret" not in str(tags)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert tags[MLFLOW_GIT_COMMIT] == head.stdout.strip()
    assert tags[MLFLOW_SOURCE_TYPE] == "LOCAL" and tags[MLFLOW_USER]


def test_settings_are_flat_by_name_and_without_passwords() -> None:
    """Items of a list go by their names, a schedule is one value, and an address keeps its password to itself."""
    arguments = ["smollm2-135m", "distill.temperature={start: 4, end: 1}", "tracking.uri=http://me:pw@host"]
    settings = flat(load_config(arguments))
    assert settings["corpus.sources.docvqa.weight"] == "0.2" and "corpus.sources.0.weight" not in settings
    assert settings["distill.temperature"] == "4 → 1 (linear)" and settings["distill.w_kd"] == "1"
    assert settings["tracking.uri"] == "http://…@host" and settings["train.lora"] == "null"


def test_credentials_are_left_out() -> None:
    """User and password of an address, also where the password holds an @; other addresses stay."""
    assert (
        without_credentials("see https://me:p@ss@host/a@b and http://host/a")
        == "see https://…@host/a@b and http://host/a"
    )
    assert (
        without_credentials("postgresql://host/db?user=me&password=p/s&ssl=on, https://host/a?sig=s%2B&token=t")
        == "postgresql://host/db?user=me&password=…&ssl=on, https://host/a?sig=…&token=…"
    )


def test_the_store_is_the_settings_then_the_environments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`tracking.uri`, else MLFLOW_TRACKING_URI, else a file in output_dir; a server is looked at by its address."""
    config = load_config(["demo", f"output_dir={tmp_path}"])
    assert tracking_uri(config) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:pw@host:5000")
    assert tracking_uri(config) == "http://me:pw@host:5000"
    assert tracking_uri(load_config(["demo", "tracking.uri=http://other"])) == "http://other"
    assert where_to_look(tracking_uri(config)) == "http://…@host:5000"
    assert where_to_look("sqlite:////a b.db") == "mlflow ui --backend-store-uri 'sqlite:////a b.db'"


@pytest.mark.parametrize("uri", ["sqlite://mlflow.db", "sqlite:////", "http://127.0.0.1:1", "uc://x"])
def test_a_store_of_the_environment_is_called_by_its_variable(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In errors, since nothing is known of a setting that nobody gave; and so is the cure."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError) as caught:
        check_store(store_uri(TrackingConfig(), Path("runs")), "lingu_ray")
    assert str(caught.value).startswith(f"MLFLOW_TRACKING_URI={uri.replace('////', '///')}")
    assert "leave tracking.uri out" not in str(caught.value)
    assert ("unset MLFLOW_TRACKING_URI" in str(caught.value)) == uri.startswith("http")


def test_a_variable_that_names_no_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A bucket is refused by the variable's name; an empty one names nothing, of results in a bucket, too."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "s3://mine/mlflow")
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI: s3://mine/mlflow: MLflow keeps runs on a server"):
        store_uri(TrackingConfig(), tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert store_uri(TrackingConfig(), tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    with pytest.raises(UserError, match=r"tracking\.uri is needed, for results go to s3://mine/runs"):
        store_uri(TrackingConfig(), "s3://mine/runs")


@pytest.mark.parametrize(("name", "known"), [("50% #1 a=b:c", True), ("my%20runs", False), ("runs?", False)])
def test_a_folder_that_no_address_can_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, known: bool
) -> None:
    """Of a database's address SQLAlchemy makes the path of the file, or the folder is refused by its name."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    file = str(tmp_path / name / "mlflow.db")
    assert (make_url(f"sqlite:///{file}").database == file) == known
    if known:
        assert store_uri(TrackingConfig(), tmp_path / name) == f"sqlite:///{file}"
    else:
        with pytest.raises(UserError, match=f"{re.escape(name)}: MLflow's database cannot lie there, .* name another"):
            store_uri(TrackingConfig(), tmp_path / name)


def test_a_server_that_does_not_answer_is_told_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked twice, not for minutes; the setting is named."""
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    with socket.socket() as unheard:  # bound, and nobody listens
        unheard.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{unheard.getsockname()[1]}"
        with pytest.raises(UserError, match=rf"tracking.uri={uri}: MLflow cannot open it"):
            check_store(uri, "lingu_ray")
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ
