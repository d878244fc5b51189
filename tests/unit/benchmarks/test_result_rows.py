"""`benchmarks.result.rows`: the table of rows, their commands, and what is run of them."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from result_recipes import recipe, tasks

from benchmarks.result import jobs as on_disk
from benchmarks.result import rows
from benchmarks.result.table import (
    CORES,
    GROUPS,
    MERGE,
    RECIPES,
    ROWS,
    SIZES,
    SWEEPS,
    Comparison,
    Job,
    Size,
    comparisons,
    jobs,
)
from lingu_ray.atomic import numbering, write_json, write_text
from lingu_ray.config import EvaluationConfig
from lingu_ray.config.command_line import load_config
from lingu_ray.errors import Interrupted, UserError
from lingu_ray.evaluate import read_arguments as read_evaluation
from lingu_ray.report.made_up import write_result
from lingu_ray.runtime.run_folder.lease import LEASE_FILE, Holder
from tuning.check import check
from tuning.space import configure, read_space
from tuning.sweep import load as load_sweep

ROOT = Path(__file__).parents[3]
NAMES = ("align", "adapt", "narrow", "natural")


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_commands_are_taken_as_they_are(size: Size, monkeypatch: pytest.MonkeyPatch):
    """Recipes, tasks and space are complete: a command of each recipe is one that its module reads, and so is what
    measures; the settings of all rows are looked at below.
    """
    monkeypatch.chdir(ROOT)
    for job in {job.row.recipe: job for job in jobs(ROWS, size)}.values():
        words = on_disk.command(job)
        if words[2] == "lingu_ray.train":
            assert load_config(words[3:]).name == job.name
        elif words[2] == "tuning.sweep":
            space, base = load_sweep(words[3:])
            assert space.name == job.name and base.output_dir == size.folder.absolute()
    assert len(read_evaluation(on_disk.measure_command(comparisons(size)[0])[3:])[1].tasks) > 9


@pytest.mark.parametrize("name", NAMES)
def test_recipes_are_runs_that_fit_each_other(name: str):
    """A recipe validates, its shares add up, its steps have rows, and all keep to one teacher and one folder."""
    config = recipe(name).validate()
    assert sum(source.weight or 0 for source in config.corpus.sources) == pytest.approx(1)
    assert config.train.steps * config.train.rows_per_step <= (config.corpus.rows or 0)
    assert config.teacher.path.endswith(on_disk.TEACHER_PATH)
    assert config.output_dir == CORES.folder.absolute()
    assert not config.evaluation.tasks  # models are measured together


def test_data_kinds_differ_in_their_sources_alone():
    """narrow.yaml and natural.yaml are one run on two kinds of data; align.yaml reads the corpus of adapt.yaml."""
    narrow, natural = (recipe(name).validate() for name in ("narrow", "natural"))
    same = {"name": narrow.name, "corpus": natural.corpus.model_copy(update={"sources": narrow.corpus.sources})}
    assert natural.model_copy(update=same) == narrow
    assert recipe("align").validate().corpus == recipe("adapt").validate().corpus


def test_evaluation_reads_held_out_files_and_sweeps_validation_files():
    """No task of the final measures is read by a sweep, and no row trains on either."""
    assert all("/evaluation/" in task.path for task in tasks().tasks)
    for name in SWEEPS:
        space = read_space(str(RECIPES / f"{name}.yaml")).validate()
        base = configure(recipe("narrow").validate(), space.settings, f"{name}.yaml")
        assert base.evaluation.tasks and all("/validation/" in task.path for task in base.evaluation.tasks)
        check(space, base)
    for name in NAMES:
        assert all("/train/" in source.path for source in recipe(name).validate().corpus.sources)


@pytest.mark.parametrize(
    "job", [job for size in SIZES.values() for job in jobs(ROWS, size)], ids=lambda job: f"{job.size.name}-{job.name}"
)
def test_commands_of_all_rows_are_ones_that_the_tool_takes(job: Job, monkeypatch: pytest.MonkeyPatch):
    """Every setting of a row exists in its recipe, has a value that it takes, and names the run after the row."""
    monkeypatch.chdir(ROOT)
    words = on_disk.command(job)
    if job.row.recipe == MERGE:
        assert [word.partition("=")[0] for word in words[3:]] == ["teacher", "student", "out", "weight"]
    elif job.row.recipe in SWEEPS:
        assert read_space(words[3]).validate().name.rpartition("-")[0] == job.row.name
    else:
        settings = recipe(Path(words[3]).stem)
        for override in words[4:]:
            settings.override(override)
        config = settings.validate()
        assert config.run_dir == on_disk.run_folder(job).root.absolute()
        assert config.seed == config.corpus.seed == job.seed
        assert job.start is None or config.student.path == str(on_disk.run_folder(job.start).export.absolute())
        assert config.train.steps * config.train.rows_per_step <= (config.corpus.rows or 0)


def test_variants_are_as_long_as_the_method():
    """All rows that are compared with `selective` train for as many steps on as many rows, but the prevented one."""
    variants = [row for row in ROWS if row.data in ("narrow", "natural") and row.model != "prevented"]
    variants = [row for row in variants if row.recipe != MERGE]
    assert len(variants) > 9
    assert not [setting for row in variants for setting in row.settings if setting.startswith(("train.", "corpus."))]


def test_a_setting_of_a_size_is_said_once():
    """What a size says of a row takes the place of what the row says, and that of what the size says of its recipe."""
    for size in SIZES.values():
        for job in jobs(ROWS, size):
            keys = [setting.partition("=")[0] for setting in size.of(job.row)]
            assert len(keys) == len(set(keys))
    prevented, gpu = next(row for row in ROWS if row.model == "prevented"), SIZES["gpu"]
    assert {"train.steps=800", "train.rows_per_step=32"} < set(gpu.of(prevented))


def test_seeds_start_from_their_own_adapted_model():
    """A seed, planned or not, is one of all that went before but the alignment; the first seed comes first."""
    for name, before in {"selective-2": "adapted-2", "light_narrow-7": "adapted_light-7"}.items():
        (job,) = rows.chosen([name])
        assert job.start is not None and job.start.name == before
        assert job.start.start is not None and job.start.start.name == "align-0"
    main = rows.chosen(["main"])
    assert [job.seed for job in main] == sorted(job.seed for job in main)


def finish(job: Job) -> None:
    """Leave in a job's folder what a run leaves there at its end."""
    folder = on_disk.run_folder(job)
    folder.export.mkdir(parents=True)
    write_text(folder.export / "config.json", "{}")
    write_json(folder.exported, {"step": 1})
    (folder.checkpoints / "step-00000001").mkdir(parents=True)


def test_comparisons_have_teacher_start_and_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A comparison has the teacher, what its rows start from, and those of its rows that are done, by their names."""
    monkeypatch.chdir(tmp_path)
    one = Comparison("medium", "narrow", 0)
    assert set(on_disk.compared(one)) == {"teacher"}
    for job in rows.chosen(["adapted-0", "prompt_text-0", "selective-0", "light_narrow-0"]):
        finish(job)
    assert list(on_disk.compared(one)) == ["teacher", "adapted", "distilled", "prompt_text"]
    for job in rows.chosen(["adapted-5", "all_natural-5"]):
        finish(job)
    unplanned = next(one for one in comparisons() if one.name == "medium-natural-5")
    assert list(on_disk.compared(unplanned)) == ["teacher", "adapted", "all"]
    assert len({one.name for one in comparisons()}) == len(comparisons())


def test_what_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A row runs what it starts from, then itself, then measures; run again it calls nothing; checkpoints are gone."""
    monkeypatch.chdir(tmp_path)
    called: list[list[str]] = []

    def call(words: list[str], clock: rows.Clock) -> None:
        called.append(words)
        for job in jobs(ROWS):
            if words == on_disk.command(job):
                finish(job)

    monkeypatch.setattr(rows, "call", call)
    monkeypatch.setattr(rows, "is_measured", lambda one: any(on_disk.measure_command(one) == words for words in called))
    for _ in range(2):
        rows.run(rows.chosen(["all_natural"]), rows.Clock(None))
    assert [words[2].rpartition(".")[2] for words in called] == ["train", "train", "evaluate", "train", "evaluate"]
    trained = [words[4] for words in called if words[2] == "lingu_ray.train"]
    assert trained == ["name=align-0", "name=adapted-0", "name=all_natural-0"]
    assert not on_disk.run_folder(rows.chosen(["all_natural-0"])[0]).checkpoints.exists()


def test_teacher_and_start_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Items of a model that another comparison has measured are taken from there; a model of another path is not."""
    monkeypatch.chdir(tmp_path)
    for job in rows.chosen(["adapted-0", "selective-0", "selective_natural-0", "adapted_light-0", "light_narrow-0"]):
        finish(job)
    first = on_disk.measured_folder(Comparison("medium", "narrow", 0)) / "items"
    first.mkdir(parents=True)
    for model in ("teacher", "adapted", "distilled"):
        (first / f"piqa.{model}.parquet").write_text(model)
    taken = {}
    for other in (Comparison("medium", "natural", 0), Comparison("light", "narrow", 0)):
        on_disk.borrow_items(other)
        taken[other.damage] = sorted(file.name for file in (on_disk.measured_folder(other) / "items").iterdir())
    assert taken == {"medium": ["piqa.adapted.parquet", "piqa.teacher.parquet"], "light": ["piqa.teacher.parquet"]}
    light = Comparison("light", "narrow", 0)
    items = [
        on_disk.measured_folder(one) / "items" / "piqa.teacher.parquet"
        for one in (light, Comparison("medium", "narrow", 0))
    ]
    for file, seconds in zip(items, (1, 2), strict=True):
        file.write_text(f"measured at {seconds}")
        os.utime(file, (time.time() + seconds, time.time() + seconds))
    on_disk.borrow_items(light)
    assert items[0].read_text() == "measured at 2"


def test_a_model_that_was_made_again_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A comparison counts as measured while its result is newer than its models, and has them all."""
    monkeypatch.chdir(tmp_path)
    one, (adapted,) = Comparison("medium", "narrow", 0), rows.chosen(["adapted-0"])
    settings = EvaluationConfig.model_validate({"tasks": ["piqa"]})
    assert not on_disk.is_measured(one)
    finish(adapted)
    write_result(settings, ["teacher", "adapted"], on_disk.measured_folder(one))
    assert on_disk.is_measured(one)
    os.utime(on_disk.run_folder(adapted).export, (time.time() + 9, time.time() + 9))
    assert not on_disk.is_measured(one)
    finish(rows.chosen(["prompt_text-0"])[0])
    write_result(settings, ["teacher", "adapted"], on_disk.measured_folder(one))
    assert not on_disk.is_measured(one)


def test_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """`list` says of each job whether it is missing, begun, running or done, with its command, and what is left."""

    monkeypatch.chdir(tmp_path)
    align, adapted, selective, _ = rows.chosen(["align-0", "adapted-0", "selective-0", "prompt_text-0"])
    finish(align)
    on_disk.run_folder(adapted).root.mkdir()
    holder = Holder("me", socket.gethostname(), numbering(), os.getpid(), None, time.time())
    write_json(on_disk.run_folder(selective).root / LEASE_FILE, asdict(holder))
    rows.main(["list", "align-0", "adapted-0", "selective-0", "prompt_text-0"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:8:2]] == ["done", "begun", "running", "missing"]
    assert "name=selective-0" in lines[5] and "minutes are left" in lines[8]


@pytest.mark.slow
def test_a_slice_stops_its_command_and_failures_are_told(tmp_path: Path):
    """When the time is over the command gets Ctrl-C, may save, and the run ends as interrupted; one that fails ends it
    with the command."""
    saves = (
        "import pathlib, signal, sys, time\n"
        f"end = lambda *_: (pathlib.Path('{tmp_path}/saved').touch(), sys.exit(130))\n"
        "signal.signal(signal.SIGINT, end); time.sleep(60)"
    )
    with pytest.raises(Interrupted):
        rows.call([sys.executable, "-c", saves], rows.Clock(2 / 60))
    assert (tmp_path / "saved").exists()
    with pytest.raises(UserError, match="exit code 3"):
        rows.call([sys.executable, "-c", "raise SystemExit(3)"], rows.Clock(None))


def test_a_slice_stops_its_command_in_the_background_of_a_script_too(tmp_path: Path):
    """There a shell has its commands ignore Ctrl-C, which a command that is started by one of them would inherit."""
    sleeps = f"import pathlib, time; time.sleep(20); pathlib.Path('{tmp_path}/slept').touch()"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(Interrupted):
            rows.call([sys.executable, "-c", sleeps], rows.Clock(0.5 / 60))
    finally:
        signal.signal(signal.SIGINT, before)
    assert not (tmp_path / "slept").exists()


def test_the_readme_names_what_there_is():
    """Rows and groups in the commands of the README exist, and so do the recipes of its table and the make target."""
    text = (RECIPES.parent / "README.md").read_text()
    words = [line.split() for line in text.splitlines() if line.startswith("python -m benchmarks.result.rows run")]
    assert len(words) > 2
    for one in words:
        assert rows.chosen([name for name in one[4:] if "=" not in name])
    named = set(re.findall(r"`recipes/(\w+\.yaml)`", text))
    assert named == {file.name for file in RECIPES.glob("*.yaml")}
    subprocess.run(["make", "-n", "result", "DATA=data"], cwd=ROOT, check=True, capture_output=True)


def test_help_and_unknown_names(capsys: pytest.CaptureFixture[str]):
    """`--help` explains every group and row; an unknown name is told with the groups there are."""
    with pytest.raises(SystemExit):
        rows.main(["--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in (*GROUPS, *(row.name for row in ROWS)))
    with pytest.raises(UserError, match="no group or row 'selectiv'"):
        rows.main(["run", "selectiv"])
    with pytest.raises(UserError, match="list or run"):
        rows.main(["train"])
