"""Whether settings, models and data may continue what stands in a run's folder."""

import json
import logging
import shutil
import threading
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tinyrun import config, write_pair_and_data

from lingu_ray.atomic import write_json
from lingu_ray.config import Config
from lingu_ray.config.command_line import load_yaml, to_yaml
from lingu_ray.corpus.plan import plan_corpus
from lingu_ray.errors import Interrupted, UserError
from lingu_ray.runtime import resume
from lingu_ray.runtime.preparation import check_output
from lingu_ray.runtime.run import Run
from lingu_ray.runtime.run_folder.folder import RunFolder
from lingu_ray.runtime.run_folder.lease import Lease
from lingu_ray.runtime.teacher.teachers import make_teacher
from lingu_ray.runtime.tracking.environment import read_environment

LEASE = Lease(Path("driver.json"), "this test")


@pytest.fixture(autouse=True)
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What is logged, information included."""
    caplog.set_level(logging.INFO)
    return caplog


def started(settings: Config, step: int = 0, exported: bool = False) -> RunFolder:
    """A run's folder as an earlier command left it, trained for `step` steps."""
    folder = RunFolder(settings.run_dir)
    folder.root.mkdir(parents=True)
    folder.config.write_text(to_yaml(settings))
    if step:
        checkpoint = folder.checkpoints / f"step-{step:08d}"
        checkpoint.mkdir(parents=True)
        write_json(checkpoint / "state.json", {"step": step, "validation_ce": None})
    if exported:
        folder.export.mkdir()
        write_json(folder.exported, {"step": step})
    return folder


def test_a_folder_in_which_nothing_was_trained_belongs_to_nobody(data: Path, tmp_path: Path, said):
    """Other settings start again in it, what differs is logged by key, and nothing of the earlier ones is left."""
    folder = started(config(data, tmp_path))
    folder.initial_model.mkdir()
    folder.mlflow.write_text("{}")
    changed = config(data, tmp_path, distill={"temperature": 2}, resume="never")
    resume.check_settings(changed, folder)
    assert "started again with other settings" in said.text
    assert "distill.temperature.end: 1.0 before, 2.0 now" in said.text
    assert not any(path.exists() for path in (folder.initial_model, folder.mlflow, folder.config))


def test_every_file_of_a_run_is_of_its_training_or_is_cleared(tmp_path: Path) -> None:
    """Also those of the trackers beside MLflow: a run that begins anew goes on in no run of theirs."""
    folder, of_training = RunFolder(tmp_path), {"checkpoints", "export", "exported", "exported_model", "stop"}
    below = {"alignment", "aligned_weights"}  # of the initial model
    names = vars(folder).keys() | {name for name, value in vars(RunFolder).items() if isinstance(value, property)}
    cleared = names - of_training - below - {"root", "place", "exported_step"}
    assert {"mlflow", "wandb", "tensorboard", "metrics"} <= cleared
    for name in cleared:
        getattr(folder, name).touch()
    folder.clear()
    assert not list(tmp_path.iterdir())


def test_the_initial_model_of_earlier_runs_is_found(tmp_path: Path) -> None:
    """A run whose folder has it under its earlier name, `start`, resumes with it."""
    folder = RunFolder(tmp_path)
    assert folder.initial_model == tmp_path / "initial_model"
    (tmp_path / "start").mkdir()
    assert folder.initial_model == tmp_path / "start"


def test_a_finished_run_shows_the_settings_that_it_was_trained_with(data: Path, tmp_path: Path):
    """Called again with others that may change, its folder takes those of what is still to be done, evaluation's."""
    folder = started(config(data, tmp_path), step=8, exported=True)
    before = load_yaml(folder.config)
    again = {"train": {"validate_every": 3}, "ray": {"num_workers": 2}, "evaluation": {"bootstrap": 77}}
    Run(config(data, tmp_path, **again), LEASE).check()
    now = load_yaml(folder.config)
    assert (now.train, now.ray) == (before.train, before.ray) and now.evaluation.bootstrap == 77


def test_a_trained_run_keeps_its_settings(data: Path, tmp_path: Path):
    """Each difference has its line, with both values, sources by name; what only costs time may change."""
    folder = started(config(data, tmp_path), step=4)
    tree = config(data, tmp_path).model_dump(mode="json")
    tree["corpus"]["sources"][0]["weight"] = 0.5
    tree["distill"]["policy"] = "all"
    with pytest.raises(UserError) as caught:
        resume.check_settings(Config.model_validate(tree), folder)
    assert "corpus.sources.text.weight: 0.6 before, 0.5 now" in str(caught.value)
    assert "distill.policy: selective before, all now" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 4
    resume.check_settings(config(data, tmp_path, train={"checkpoint_every": 1}, ray={"num_workers": 2}), folder)
    with pytest.raises(UserError, match="resume=never"):
        resume.check_settings(config(data, tmp_path, resume="never"), folder)


def test_a_trained_run_without_its_records_goes_on_in_no_silence(data: Path, tmp_path: Path, said):
    """Without its settings it is refused; that models or data cannot be compared is said, and where nothing was trained
    there is nothing to compare."""
    settings = config(data, tmp_path)
    folder = started(settings, step=4)
    resume.check_models(settings, folder)
    plan = SimpleNamespace()
    assert f"{folder.models} is gone: nothing says whether models have changed" in said.text
    assert resume.check_data(plan, folder) is plan
    assert f"{folder.corpus} is gone: nothing says whether data have changed" in said.text
    folder.config.unlink()
    with pytest.raises(
        UserError, match=r"for 4 steps, and nothing says with which .* config\.yaml is gone: put it back"
    ):
        resume.check_settings(settings, folder)
    shutil.rmtree(folder.checkpoints)
    resume.check_settings(settings, folder)


@pytest.mark.parametrize("content", [b"", b'{"step": ', b"\0\0\0", b"\xff"])
def test_a_record_that_was_cut_off_is_named(data: Path, tmp_path: Path, content: bytes):
    """Whichever of a run's it is, with what to do."""
    settings = config(data, tmp_path)
    folder = started(settings, step=8, exported=True)
    readers = {
        folder.exported: lambda: resume.trained_steps(folder),
        folder.models: lambda: resume.check_models(settings, folder),
        folder.corpus: lambda: resume.recorded_corpus(folder),
        folder.environment: lambda: read_environment(folder.root),
    }
    for record, read in readers.items():
        before = record.read_bytes() if record.exists() else None
        record.write_bytes(content)
        with pytest.raises(UserError, match=rf"{record} is cut off, or no JSON .*: put it back from a copy, or remove"):
            read()
        record.unlink() if before is None else record.write_bytes(before)


@pytest.mark.parametrize("record", ["mlflow", "wandb", "contamination", "environment"])
def test_a_record_that_was_cut_off_is_told_before_the_corpus_is_built(data: Path, tmp_path: Path, record: str):
    """Whatever reads it then; the MLflow run that this one is nested under is asked for as well."""
    settings = config(data, tmp_path)
    path: Path = getattr(started(settings, step=4), record)
    path.write_text('{"run_id": ', encoding="utf-8")
    with pytest.raises(UserError, match=f"{path} is cut off"):
        Run(settings, LEASE).check()
    if record == "mlflow":
        nested = config(data, tmp_path, name="nested", tracking={"parent": str(settings.run_dir)})
        with pytest.raises(UserError, match=f"{path} is cut off"):
            Run(nested, LEASE).check()


def test_steps_may_grow(data: Path, tmp_path: Path, said):
    """More steps train on, by a rule that is said; fewer than were trained are refused; without checkpoints, both."""
    folder = started(config(data, tmp_path), step=8, exported=True)
    longer = config(data, tmp_path, train={"steps": 16})
    assert Run(config(data, tmp_path), LEASE).finished and not Run(longer, LEASE).finished
    resume.check_settings(longer, folder)
    assert "from step 9 on, learning rate, temperature and weights are those that a run of 16 steps has" in said.text
    with pytest.raises(UserError, match=r"train\.steps=4, .* has been trained for 8 steps"):
        resume.check_settings(config(data, tmp_path, train={"steps": 4}), folder)
    shutil.rmtree(folder.checkpoints)
    with pytest.raises(UserError, match="ended at step 8 and its checkpoints are gone"):
        resume.check_settings(longer, folder)


@pytest.mark.parametrize(("trained", "status"), [(4, "paused"), (3, "KILLED")])
def test_a_run_to_a_given_step_was_trained_to_it_or_interrupted(data: Path, tmp_path: Path, trained: int, status: str):
    """Its workers end without error in both cases: what the checkpoint has tells whether they came that far."""
    settings, told = config(data, tmp_path), []
    started(settings, step=trained)
    run = Run(settings, LEASE)
    run.until, run.thread = 4, threading.Thread()
    run.progress = SimpleNamespace(close=lambda: None)
    run.tracker = SimpleNamespace(pause=lambda: told.append("paused"), end=told.append)
    with nullcontext() if status == "paused" else pytest.raises(Interrupted, match="run the same command again"):
        run.end()
    assert told == [status]


def test_a_run_of_which_no_checkpoint_is_whole_is_refused(data: Path, tmp_path: Path):
    """Neither the same settings nor other ones touch its folder; a finished run needs none of its checkpoints."""
    folder = started(config(data, tmp_path), step=4)
    (folder.checkpoints / "step-00000004" / "state.json").write_text("{")
    for settings in (config(data, tmp_path), config(data, tmp_path, distill={"temperature": 2})):
        with pytest.raises(
            UserError, match=r"checkpoints: no checkpoint is whole: files of step-0+4 .* remove that folder"
        ):
            Run(settings, LEASE).check()
    assert folder.config.exists()
    folder.export.mkdir()
    write_json(folder.exported, {"step": 8})
    Run(config(data, tmp_path), LEASE).check()


def test_moved_models_are_the_same_and_changed_ones_are_not(tmp_path: Path):
    """A pair that was moved may continue; one whose files changed is refused; an untrained run takes it."""
    write_pair_and_data(tmp_path / "a")
    settings = config(tmp_path / "a", tmp_path / "runs")
    folder = started(settings)
    resume.check_models(settings, folder)
    shutil.move(tmp_path / "a", tmp_path / "b")
    moved = config(tmp_path / "b", tmp_path / "runs")
    checkpoint = folder.checkpoints / "step-00000004"
    checkpoint.mkdir(parents=True)
    write_json(checkpoint / "state.json", {"step": 4, "validation_ce": None})
    resume.check_settings(moved, folder)
    resume.check_models(moved, folder)
    card = tmp_path / "b" / "student" / "config.json"
    card.write_text(card.read_text() + "\n")
    with pytest.raises(UserError, match=r"another model than student\.path=.*: its files have changed"):
        resume.check_models(moved, folder)
    shutil.rmtree(folder.checkpoints)
    resume.check_models(moved, folder)
    resume.check_models(moved, folder)


def test_a_finished_run_is_measured_beside_the_models_that_it_was_started_with(tmp_path: Path):
    """Moved ones, too; changed ones are refused where there are tasks to measure, and else no longer looked at."""
    write_pair_and_data(tmp_path / "a")
    folder = started(settings := config(tmp_path / "a", tmp_path / "runs"))
    resume.check_models(settings, folder)
    folder.export.mkdir()
    write_json(folder.exported, {"step": 8})
    shutil.move(tmp_path / "a", tmp_path / "b")
    task = {"name": "t", "kind": "language", "type": "perplexity", "path": "t.jsonl"}
    measured = config(tmp_path / "b", tmp_path / "runs", evaluation={"tasks": [task]})
    Run(measured, LEASE).check()
    card = tmp_path / "b" / "teacher" / "config.json"
    card.write_text(card.read_text() + "\n")
    with pytest.raises(UserError, match=r"another model than teacher\.path=.*: its files have changed"):
        Run(measured, LEASE).check()
    Run(config(tmp_path / "b", tmp_path / "runs"), LEASE).check()


def test_what_loads_a_model_looks_at_that_model_alone(tmp_path: Path):
    """A control's worker never reads the teacher, nor copies one from a bucket; one in the worker is looked at."""
    write_pair_and_data(tmp_path)
    settings = config(tmp_path, tmp_path / "runs", teacher={"placement": "in_process"})
    folder = started(settings)
    resume.check_models(settings, folder)
    shutil.rmtree(tmp_path / "teacher")
    resume.check_loaded_models(settings, folder, [resume.STUDENT])
    check = partial(resume.check_loaded_models, settings, folder, [resume.TEACHER])
    with pytest.raises(UserError, match=r"another model than teacher\.path=.*: its files have changed"):
        make_teacher(settings.teacher, torch.float32, torch.device("cpu"), 1, check=check)


def test_changed_data_are_refused_or_said(tmp_path: Path, said):
    """The source whose file changed is named; `corpus.if_changed=warn` trains on; moved data are the same."""
    write_pair_and_data(tmp_path / "a")
    settings = config(tmp_path / "a", tmp_path / "runs")
    folder = started(settings, step=4)
    processor = tmp_path / "a" / "student"
    resume.record_corpus(plan_corpus(settings, processor), folder)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    moved = config(tmp_path / "b", tmp_path / "runs")
    resume.check_data(plan_corpus(moved, processor), folder)
    text = tmp_path / "b" / "text.jsonl"
    text.write_text(text.read_text() + json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    with pytest.raises(UserError, match="the data of source text changed since"):
        resume.check_data(plan_corpus(moved, processor), folder)
    warned = config(tmp_path / "b", tmp_path / "runs", corpus={"if_changed": "warn"})
    changed = resume.check_data(plan_corpus(warned, processor), folder)
    assert "training on with the new data" in said.text and resume.corpus_since(folder) == 0
    resume.record_corpus(changed, folder)
    write_json(folder.checkpoints / "step-00000006" / "state.json", {"step": 6, "validation_ce": None})
    resume.record_corpus(changed, folder)
    assert resume.corpus_since(folder) == 4  # reports count passes over the new data from there on


def test_sources_in_another_order_are_told_as_such(data: Path, tmp_path: Path):
    """Rows then take turns otherwise, so it is another corpus, though no source has changed."""
    settings = config(data, tmp_path)
    folder = started(settings, step=4)
    plan = plan_corpus(settings, data / "student")
    resume.record_corpus(plan, folder)
    sources = tuple(reversed(settings.corpus.sources))
    other = settings.model_copy(update={"corpus": settings.corpus.model_copy(update={"sources": sources})})
    with pytest.raises(UserError, match=r"the order of corpus.sources changed since. Put that back, choose"):
        resume.check_data(plan_corpus(other, data / "student"), folder)


def test_a_finished_run_tells_of_changed_data(tmp_path: Path, said):
    """The source whose file changed is named, and no other; unchanged, moved and deleted data are no reason to warn."""
    write_pair_and_data(tmp_path / "a")
    settings = config(tmp_path / "a", tmp_path / "runs")
    folder = started(settings, step=4)
    resume.record_corpus(plan_corpus(settings, tmp_path / "a" / "student"), folder)
    resume.tell_changed_data(settings, folder)
    shutil.move(tmp_path / "a", tmp_path / "b")
    resume.tell_changed_data(settings, folder)
    moved = config(tmp_path / "b", tmp_path / "runs")
    resume.tell_changed_data(moved, folder)
    assert not [record for record in said.records if record.levelname == "WARNING"]
    text = tmp_path / "b" / "text.jsonl"
    text.write_text(text.read_text() + json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    resume.tell_changed_data(moved, folder)
    [warning] = [record.getMessage() for record in said.records if record.levelname == "WARNING"]
    assert "the data of source text changed since the run was trained" in warning


@pytest.mark.parametrize("content", ["[]", "{}", '"run"'])
def test_a_record_of_another_shape_is_told(data: Path, tmp_path: Path, content: str):
    """JSON that is whole, and not what was written there: as is told of one that was cut off, with what is missing."""
    folder = started(config(data, tmp_path), step=4)
    for path, read in (
        (folder.corpus, lambda: resume.recorded_corpus(folder)),
        (folder.exported, lambda: folder.exported_step),
    ):
        folder.export.mkdir(exist_ok=True)
        path.write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match=rf"{path} (has no (path|step)|holds no object), so it is another file"):
            read()


def test_a_run_keeps_the_corpus_of_an_earlier_version(tmp_path: Path):
    """Begun on a corpus that an earlier version built, it goes on with that, as long as it is there."""
    write_pair_and_data(tmp_path / "a")
    settings = config(tmp_path / "a", tmp_path / "runs")
    folder = started(settings, step=4)
    plan = plan_corpus(settings, tmp_path / "a" / "student")
    mark = plan.earlier[-1]
    earlier = plan.as_earlier(mark)
    assert earlier.folder == settings.corpora_dir / mark != plan.folder
    resume.record_corpus(earlier, folder)
    with pytest.raises(UserError, match="lingu_ray's own rules, changed since"):
        resume.check_data(plan, folder)
    earlier.folder.mkdir(parents=True)
    assert resume.check_data(plan, folder) == earlier
    resume.record_corpus(plan, folder)
    assert resume.check_data(plan, folder) == plan


def test_images_that_records_name_belong_to_the_data(tmp_path: Path):
    """Records copied beside other pictures make another corpus; weights of the loss do not."""
    write_pair_and_data(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    processor = tmp_path / "a" / "student"
    plans = lambda: [plan_corpus(config(tmp_path / n, tmp_path), processor).fingerprint for n in "ab"]  # noqa: E731
    first, second = plans()
    assert first == second
    (tmp_path / "b" / "0.png").write_bytes((tmp_path / "b" / "1.png").read_bytes())
    first, second = plans()
    assert first != second
    tree = config(tmp_path / "a", tmp_path).model_dump(mode="json")
    tree["corpus"]["sources"][0] |= {"kd_weight": 0.5, "ce_weight": 2.0}
    assert plan_corpus(Config.model_validate(tree), processor).fingerprint == first


def test_output_in_a_jobs_own_folder_is_refused(data: Path):
    """A job's working directory is Ray's copy, which it removes: the run names the setting and the cure."""
    where = Path("/tmp/ray/session_1/runtime_resources/working_dir_files/_ray_pkg_0/runs")
    with pytest.raises(UserError, match=r"output_dir=.* lies in the copy .* absolute output_dir="):
        Run(config(data, where), LEASE).check()
    assert not where.exists()


def test_output_that_cannot_be_written_is_refused(data: Path, tmp_path: Path):
    """Before anything else, with what is in the way: a file in its place, or above it, or a link to nothing."""
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("gone")
    for name, why in (("file", "is a file"), ("file/runs", "is a file"), ("link", "is a link to gone, which leads no")):
        said = rf"output_dir={tmp_path / name}: cannot be written: {tmp_path / name.partition('/')[0]} {why}"
        with pytest.raises(UserError, match=said):
            Run(config(data, tmp_path / name), LEASE).check()
    with pytest.raises(UserError, match=rf"output_dir={data}/text.jsonl: cannot be written: .* is a file"):
        Run(config(data, data / "text.jsonl"), LEASE).check()  # which is data, too, and nothing can lie in it


@pytest.mark.parametrize(("setting", "written"), [("output_dir", "runs"), ("corpus.cache_dir", "built")])
def test_results_do_not_lie_in_a_folder_of_data(data: Path, tmp_path: Path, setting: str, written: str):
    """A run's own files would be data of the next one: refused, behind a link too; beside files, or hidden, they are
    none."""

    def settings(place: Path, pattern: str = "") -> Config:
        tree = config(data, tmp_path / "elsewhere").model_dump(mode="json")
        tree["corpus"]["sources"][0]["path"] = f"{tmp_path / 'data'}{pattern}"
        (tree if setting == "output_dir" else tree["corpus"])[setting.rpartition(".")[2]] = str(place)
        return Config.model_validate(tree)

    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    for folder in ("data", "link"):
        place = tmp_path / folder / written
        with pytest.raises(UserError, match=rf"{setting}={place} lies in corpus\.sources\.text\.path=.*/\*\.jsonl"):
            check_output(settings(place))
        assert not place.exists()
    check_output(settings(tmp_path / "data" / f".{written}"))
    check_output(settings(tmp_path / "data" / written, "/*.jsonl"))
    check_output(settings(tmp_path / "data-too" / written))
    file = {"output_dir": r"run/metrics\.jsonl", "corpus.cache_dir": r"corpus/shard-00000\.parquet"}[setting]
    kind, place = file.rpartition(".")[2], tmp_path / "data" / written
    for pattern in (f"/**/*.{kind}", f"/*/*/*.{kind}", "/*"):
        with pytest.raises(UserError, match=rf"text\.path=.* matches files .* {setting}=.*, such as {place}/{file}, "):
            check_output(settings(place, pattern))
    check_output(settings(place, f"/**/part-*.{kind}"))
    if setting == "output_dir":
        with pytest.raises(UserError, match=rf"such as {place}/run/logs/rank-0\.jsonl, "):
            check_output(settings(place, "/**/rank-*.jsonl"))
    check_output(settings(tmp_path / "data" / f".{written}", f"/**/*.{kind}"))
