"""`benchmarks.result.page` on made-up items of a few rows: its tables, figures and answers are those of the results."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.result import page
from benchmarks.result.figures import WHISKERS, curve_panels, sight_panel
from benchmarks.result.jobs import DATA_MANIFEST, measured_folder, run_folder
from benchmarks.result.seeds import Results, Seeds, read_measured
from benchmarks.result.sight import asked_file
from benchmarks.result.table import CORES, Comparison, Job, row
from lingu_ray.atomic import write_json
from lingu_ray.config import EvaluationConfig
from lingu_ray.errors import UserError
from lingu_ray.evaluation.item_files import SAMPLE, items_path, write_items
from lingu_ray.evaluation.recovery import summarize
from lingu_ray.evaluation.results import Estimate, Interval
from lingu_ray.preview.knowledge import Known
from lingu_ray.runtime.controls import control_folder
from lingu_ray.runtime.run_folder.folder import RunFolder
from lingu_ray.runtime.run_folder.records import JsonLines

pytestmark = pytest.mark.slow  # draws a page of plots

ITEMS = 60
LANGUAGE = {"teacher": 3.0, "adapted": 4.0, "plain_ce": 3.3, "distilled": 3.1, "prompt_text": 3.2, "all": 3.1}
VISION = {"adapted": 0.9, "plain_ce": 0.8, "distilled": 0.9, "prompt_text": 0.85, "all": 0.5}


@pytest.fixture(scope="module")
def docs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The page of three seeds on narrow data, one on natural data, curves of two seeds and a sweep; the working
    directory is the one with the runs."""
    folder = tmp_path_factory.mktemp("experiment")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for one in (*(Comparison("medium", "narrow", seed) for seed in range(3)), Comparison("medium", "natural", 0)):
            write_measured(one)
        for seed, ended in enumerate((False, True)):
            for name in ("selective", "all"):
                write_curve(run_folder(Job(row(f"{name}_natural"), seed)))
            write_curve(control_folder(run_folder(Job(row("selective_natural"), seed)), "plain_ce"))
            write_curve(run_folder(Job(row("language_only_natural"), seed)), ended)
        table = run_folder(Job(row("sweep"), 0)).report / "table.csv"
        table.parent.mkdir(parents=True)
        with table.open("w", newline="") as file:
            csv.writer(file).writerows([["trial", "w_kd", "error"], ["t1", "0.123456", "no, not this"]])
        for seed, told in enumerate((0.2, 0.4, 0.3)):
            write_sight(Comparison("medium", "narrow", seed), "prompt_text", told)
        for seed, told in enumerate((0.3, 0.6, 0.6)):
            write_sight(Comparison("medium", "narrow", seed), "distilled", told)
        DATA_MANIFEST.parent.mkdir()
        DATA_MANIFEST.write_text("{}")
        page.main(["out=docs"])
        yield folder / "docs"


def write_curve(folder: RunFolder, ended: bool = True) -> None:
    """What a run leaves of its steps, and of its end."""
    folder.root.mkdir(parents=True)
    records = JsonLines(folder.metrics)
    for step in range(1, 30):
        records.append({"step": step, "ce": 2 + 1 / step, "kd": 1 / step})
    if ended:
        folder.export.mkdir()
        write_json(folder.exported, {"step": 29})


def write_sight(one: Comparison, model: str, told: float) -> None:
    """What a probe finds of a source, as benchmarks.result.sight keeps it."""
    same = Estimate(2.0, Interval(1.0, 3.0))
    known = Known("descriptions", 4, 4, 9, same, same, same, same, Estimate(told, Interval(0, 1)), same)
    write_json(asked_file(one, model), [asdict(known)])


def write_measured(one: Comparison, models: Sequence[str] = tuple(LANGUAGE)) -> None:
    """Items as an evaluation leaves them, and what it makes of them."""
    chance, folder = np.random.default_rng(one.seed), measured_folder(one)
    tasks = [
        {"name": "encyclopedic", "kind": "language", "type": "perplexity", "path": "texts.jsonl"},
        {"name": "piqa", "kind": "language", "type": "multiple_choice", "path": "piqa.jsonl"},
        {"name": "clothing", "kind": "vision", "type": "exact_match", "path": "clothing.jsonl"},
    ]
    names = [str(n) for n in range(ITEMS)]
    for model, nats in LANGUAGE.items():
        if model not in models:
            continue
        texts = [[float(-100 * chance.normal(nats, 0.1))] for _ in names]
        passages = {"item": names, "logliks": texts, "tokens": [[100]] * ITEMS}
        write_items(items_path(folder, "encyclopedic", model), passages, None)
        choices = [[float(chance.normal(5 - nats, 1)), 0.0] for _ in names]
        columns = {"item": names, "logliks": choices, "lengths": [[9, 9]] * ITEMS, "gold": [0] * ITEMS}
        write_items(items_path(folder, "piqa", model), columns, None)
    for model, share in VISION.items():
        if model not in models:
            continue
        right = ["coat" if n % 2 else "hat" for n in range(ITEMS)]  # which no one answer is
        said = [answer if chance.random() < share else "a | dress" for answer in right]
        shown = {"asked": "<image>What is this?", "options": [], "images": [jpeg()]}
        samples = [shown if n < 12 else None for n in range(ITEMS)]
        columns = {"item": names, "prediction": said, "answers": [[answer] for answer in right], SAMPLE: samples}
        write_items(items_path(folder, "clothing", model), columns, None)
    summarize(folder, list(models), EvaluationConfig.model_validate({"tasks": tasks, "bootstrap": 100}))


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (48, 48), "orange").save(buffer, "JPEG")
    return buffer.getvalue()


def cells(text: str, label: str) -> list[str]:
    """The cells behind a label, in the first table that has it."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {label} |"))
    return [cell.strip() for cell in line.replace("\\|", "¦").strip("|").split("|")][1:]


def test_whiskers_of_seeds_and_of_items_are_told_apart():
    """The spread over seeds is a line, the one seed's interval over items is dotted, and the figure says so."""
    found = [Estimate(value, Interval(0.1, 0.4)) for value in (0.2, 0.3)]
    axis = Figure().subplots()
    sight_panel("descriptions", {("b", "all"): Seeds(tuple(found[:1])), ("a", "all"): Seeds(tuple(found))}).draw(axis)
    dashes = [line.get_linestyle()[0][1] for line in axis.collections]
    assert dashes[0] is None and dashes[1] and axis.get_xlabel() == WHISKERS


def test_page_shows_what_was_measured(docs: Path):
    """Scores are means over the seeds with their deviation, the map has the one seed's interval, answers are those of
    the items, the sweep's table is its own; every result lies beside the page as it was measured."""
    text = (docs / "real_pair.md").read_text()
    results = Results.of(read_measured())
    scores = [one.result.tasks["piqa"].models["distilled"].score.value for one in results.measured]
    header = next(line for line in text.splitlines() if "teacher (original LM)" in line)
    column = [cell.strip() for cell in header.strip("|").split("|")].index("selective") - 1
    expected = f"{100 * np.mean(scores):.1f} ± {100 * np.std(scores, ddof=1):.1f}"
    assert cells(text, "piqa, acc, %")[column] == expected
    natural = json.loads((docs / "medium-natural-0.json").read_text())["summary"]["over"]["plain_ce"]
    ahead = []
    for name in ("recovery", "retention"):
        low, high = (f"{100 * end:.1f}" for end in natural[f"{name}_ci"])
        ahead.append(f"{100 * natural[name]:.1f} [{low}, {high}]")
    assert cells(text, "medium, natural")[3] == ahead[0]
    assert cells(text, "medium, natural, plain CE")[1::2] == ahead
    assert cells(text, "medium, natural")[5].endswith("]") and "\n- medium-natural-0: The claim" in text
    assert "- medium-narrow-0: The" not in text  # it stands at the top
    shown = cells(text, "![clothing](answer_0.jpg)")
    assert shown[:2] == ["What is this?", "hat"] and set(shown[2:]) <= {"hat", "a ¦ dress"} and len(shown) == 6
    sight = text[text.index("## Sight in sentences") :]
    assert cells(sight, "medium, narrow, prompt_text")[::2] == ["0.300 ± 0.100", "2.000 [1.000, 3.000]"]
    assert cells(text, "t1") == ["0.1235", "no, not this"]
    names = ("narrow-0", "narrow-1", "narrow-2", "natural-0")
    assert {file.name for file in docs.glob("*.json")} == {"data.json", *(f"medium-{name}.json" for name in names)}


def test_intervals_over_trainings(docs: Path):
    """Three seeds have an interval by Student's t, mean ± 4.303 s / √3, of what the method brings, and of what it is
    ahead seed by seed, on tasks and in sight; one seed has none."""
    text = (docs / "real_pair.md").read_text()
    section = text[text.index("## Over trainings") : text.index("## Where the teacher")]
    results = Results.of(read_measured())
    for name, found in (
        ("selective, %", results.mean("recovery", "distilled")),
        ("− prompt_text, points", results.ahead("recovery", "prompt_text")),
    ):
        values = np.array([100 * one.value for one in found.found])
        half = 4.302653 * values.std(ddof=1) / np.sqrt(3)
        expected = f"{values.mean():.1f} [{values.mean() - half:.1f}, {values.mean() + half:.1f}]"
        assert cells(section, f"medium, narrow | {name}")[1] == expected
    assert "natural" not in section
    more = np.array([0.1, 0.2, 0.3])
    half = 4.302653 * more.std(ddof=1) / np.sqrt(3)
    sight = cells(text[text.index("## Sight in sentences") :], "medium, narrow, prompt_text")
    assert sight[1] == f"0.200 [{0.2 - half:.3f}, {0.2 + half:.3f}]"
    assert cells(text[text.index("## Sight in sentences") :], "medium, narrow, selective")[1] == ""


def test_what_was_measured_elsewhere_counts(docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Without the runs, the results beside the page give the same tables, and what only runs can show stays; a seed
    that is measured here takes the place of the one beside the page."""
    shutil.copytree(docs, tmp_path / "docs")
    monkeypatch.chdir(tmp_path)
    page.main(["out=docs"])
    assert (tmp_path / "docs/real_pair.md").read_text() == (docs / "real_pair.md").read_text()
    (tmp_path / "docs/medium-narrow-1.json").unlink()
    page.main(["out=docs"])
    without = (tmp_path / "docs/real_pair.md").read_text()
    assert "Seeds 0, 2." in without and "## Answers side by side" in without and "## Sweep" in without
    write_measured(Comparison("medium", "narrow", 1))
    page.main(["out=docs"])
    again = (tmp_path / "docs/real_pair.md").read_text()
    assert cells(again, "piqa, acc, %") == cells((docs / "real_pair.md").read_text(), "piqa, acc, %")


def test_what_has_only_begun_here_takes_no_place(docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Teacher and start, measured here before the method's model is there, leave the published result as it is."""
    shutil.copytree(docs, tmp_path / "docs")
    monkeypatch.chdir(tmp_path)
    write_measured(Comparison("medium", "narrow", 1), models=("teacher", "adapted"))
    page.main(["out=docs"])
    for name in ("real_pair.md", "medium-narrow-1.json"):
        assert (tmp_path / "docs" / name).read_text() == (docs / name).read_text()


def test_curves_are_of_runs_that_ended(docs: Path):
    """Those of the first seed whose three variants ended: one that was stopped would have a shorter curve."""
    first, _ = curve_panels(CORES)
    assert isinstance(first.draw, partial)
    assert list(first.draw.keywords["runs"]) == ["all", "language_only", "selective", "plain CE"]


def test_figures_that_the_page_names_are_there(docs: Path):
    """Recovery, retention, map, sight and curves are pictures, and the page names no file that is not beside it."""
    text = (docs / "real_pair.md").read_text()
    names = {part.partition(")")[0] for part in text.split("](")[1:]}
    assert {"recovery.png", "retention.png", "map.png", "sight.png", "curves.png"} < names
    for name in names:
        with Image.open(docs / name) as image:
            assert image.width >= 48


def test_nothing_measured_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Before the first row there is no page, and the message names the command."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"benchmarks\.result\.rows run"):
        page.main([])


def test_each_size_has_its_page():
    """Results of the two sizes lie apart, unless a folder is named."""
    assert page.PageConfig().folder == Path("docs/results")
    assert page.PageConfig(size="gpu").folder == Path("docs/results/gpu")
    assert page.PageConfig(size="gpu", out=Path("there")).folder.name == "there"


def test_one_seed_has_its_interval():
    """Of one seed the interval over items is shown, of several the standard deviation between them."""
    one = Estimate(0.5, Interval(0.4, 0.7))
    assert Seeds((one,)).text("{:.1f}".format) == "0.5 [0.4, 0.7]"
    assert Seeds((one, Estimate(0.7, Interval(0, 1)))).text("{:.2f}".format) == "0.60 ± 0.14"
    assert Seeds((one, one)).text("{:.1f}".format) == "0.5 [0.4, 0.7]"  # the teacher has no seeds
    alike = Estimate(0.5, Interval(0.3, 0.6))  # two seeds may have one value
    assert Seeds((one, alike)).text("{:.1f}".format) == "0.5 ± 0.0"
    assert Seeds(()).text("{:.1f}".format) == "–"
