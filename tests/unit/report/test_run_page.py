"""The report, from a small run folder made by hand."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from measured import write_measured
from PIL import Image
from tiny import picture

from lingu_ray.config import Config, EvaluationConfig, TaskConfig
from lingu_ray.config.command_line import to_yaml
from lingu_ray.corpus.store import ROW_SCHEMA, write_rows
from lingu_ray.evaluate import read_arguments
from lingu_ray.evaluation.item_files import SAMPLE, items_path, write_items
from lingu_ray.evaluation.recovery import summarize
from lingu_ray.evaluation.recovery_json import read_recovery, write_recovery
from lingu_ray.evaluation.results import Verdict
from lingu_ray.report import plots
from lingu_ray.report.evaluation_page import write_evaluation
from lingu_ray.report.held_out import held_out_answers
from lingu_ray.report.paper_table import paper_rows
from lingu_ray.report.plots import COLORS, Panel, model_colors, save_panels
from lingu_ray.report.run_page import throughput, write_report
from lingu_ray.report.samples import answered
from lingu_ray.report.score_plots import plot_recovery, recovery_panels

pytestmark = pytest.mark.slow  # draws pages of plots

STEP = {
    "lr": 1e-4,
    "grad_norm": 1.0,
    "temperature": 1.0,
    "w_ce": 1.0,
    "w_kd": 1.0,
    "tokens": 100,
    "tokens_per_s": 500.0,
}


def red() -> bytes:
    """A red picture, larger than a thumbnail."""
    buffer = io.BytesIO()
    Image.new("RGB", (600, 300), (250, 10, 10)).save(buffer, "PNG")
    return buffer.getvalue()


RED = red()


class Page(HTMLParser):
    """Collects the tags, the text and what the page refers to; every tag that opens must close."""

    VOID = ("meta", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.labels: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        self.labels += [value or "" for name, value in attrs if name == "aria-label"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def steps(kd: float | None) -> list[dict[str, Any]]:
    """Ten steps and two validations."""
    records: list[dict[str, Any]] = []
    for step in range(1, 11):
        shares = {"data_wait": 0.1, "teacher_wait": 0.2, "step_s": 0.5, "time": 1e9 + step}
        records.append({"step": step, "loss": 5.0 / step, "ce": 5.0 / step, "kd": kd, **STEP, **shares})
        if step % 5 == 0:
            validation = {"stories": {"ce": 4.0 / step, "tokens": 50}, "digits": {"ce": 1.0 / step, "tokens": 10}}
            records.append({"step": step, "validation": validation, "validation_ce": 2.5 / step})
    return records


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def write_samples(run: Path) -> None:
    """Answers to a text and to a question on a picture, at two steps; the control's at the last."""
    text = {"source": "stories", "position": 0, "question": "<script>alert(1)</script>", "expected": "an end"}
    seen = {"source": "digits", "position": 1, "question": "<image>Which digit?", "expected": "seven"}
    write_lines(
        run / "samples.jsonl",
        [
            {"step": 5, **text, "answer": "<b>x"},
            {"step": 5, **seen, "answer": "one"},
            {"step": 10, **text, "answer": "the end"},
            {"step": 10, **seen, "answer": "seven"},
        ],
    )
    write_lines(run / "controls" / "plain_ce" / "samples.jsonl", [{"step": 10, **text, "answer": "of the control"}])


def write_corpus(folder: Path) -> None:
    """Manifest and held-out rows of a corpus; of the pictures one is the sampled question's."""
    folder.mkdir()
    counts = {"read": 9, "accepted": 7, "rejected": {"empty answer": 2}, "truncated": 1, "validation": 2}
    sources = {"stories": counts | {"used": 6, "distill": True}, "digits": counts | {"used": 2, "distill": False}}
    (folder / "manifest.json").write_text(json.dumps({"rows": 8, "sources": sources}))
    rows = [
        {"source": source, "position": position, "messages": [], "images": images, "distill": False}
        for source, position, images in (
            ("digits", 0, [picture(0)]),
            ("digits", 1, [RED]),
            ("stories", 0, []),
            ("stories", 1, [picture(1)]),
        )
    ]
    write_rows(pa.Table.from_pylist(rows, ROW_SCHEMA), folder / "validation.parquet")


@pytest.fixture(scope="module")
def config() -> Config:
    """The smallest settings."""
    return Config.model_validate(
        {
            "name": "small",
            "student": {"path": "owner/vlm"},
            "teacher": {"path": "models/lm"},
            "tracking": {"uri": "https://user:secret@mlflow.example/path"},
            "corpus": {
                "sources": [
                    {"name": "stories", "format": "text", "path": "x", "language_heavy": True, "kd_weight": 0.7},
                    {"name": "digits", "format": "template", "path": "x", "prompt": "<image>?", "answer": "{label}"},
                ]
            },
            "distill": {"ce_on_distilled": 0.2},
            "train": {"steps": 10, "rows_per_step": 4},
        }
    )


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory, config: Config) -> Path:
    """A finished run with its report: metrics, samples, control, corpus and measured items. Only to read."""
    folder = tmp_path_factory.mktemp("runs")
    run = folder / "small"
    write_lines(run / "metrics.jsonl", steps(kd=0.3))
    write_lines(run / "controls" / "plain_ce" / "metrics.jsonl", steps(kd=None))
    write_samples(run)
    (run / "config.yaml").write_text(to_yaml(config))
    write_corpus(folder / "corpus")
    (run / "corpus.json").write_text(json.dumps({"path": str(folder / "corpus")}))
    tasks = (
        TaskConfig(name="cloze", kind="language", type="multiple_choice", path="-"),
        TaskConfig(name="text", kind="language", type="perplexity", path="-"),
        TaskConfig(name="digits", kind="vision", type="exact_match", path="-"),
    )
    scores = {"teacher": (0.6, 3.0), "adapted": (0.3, 9.0), "plain_ce": (0.4, 5.0), "distilled": (0.58, 3.2)}
    for model, (share, nats) in scores.items():
        right = [float(i < share * 200) for i in range(200)]
        cloze, text, digits = tasks
        write_measured(run / "report", cloze, model, right)
        write_measured(run / "report", text, model, [nats + i % 3 for i in range(200)])
        if model != "teacher":
            write_measured(run / "report", digits, model, [1.0] * 300)
    summarize(run / "report", list(scores), EvaluationConfig(tasks=tasks, bootstrap=200))
    write_report(run)
    return run


@pytest.fixture(scope="module")
def text(reported: Path) -> str:
    """The report's page."""
    return (reported / "report" / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def run_dir(reported: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be changed."""
    return shutil.copytree(reported, tmp_path / "small")


def test_report_is_one_whole_page(reported: Path, text: str) -> None:
    """Valid nesting, verdict first, every part there, nothing loaded from elsewhere, text escaped."""
    page = Page(text)
    assert all(source.startswith(("data:image/jpeg;base64,", "#")) for source in page.sources)
    assert "script" not in page.tags and "b" in page.tags and "<script>alert(1)</script>" in page.text
    result = read_recovery(reported / "report")
    assert result is not None
    verdict = result.verdict.text
    assert verdict.startswith("The claim holds") and verdict in page.text
    for part in ("58.0%", "2 empty answer", "of the control", "the end", "10.0%", "20.0%", "train.steps", "owner/vlm"):
        assert part in page.text, part
    assert "corpus.sources.stories.format" in page.text
    assert "mlflow.example" in page.text and "secret" not in page.text


def test_figures_are_images_beside_the_page(reported: Path) -> None:
    """loss.png and recovery.png open, on white."""
    for name in ("loss.png", "recovery.png"):
        with Image.open(reported / "report" / name) as image:
            assert image.format == "PNG" and image.width > 800
            assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.filterwarnings("error")
def test_letters_that_no_font_has_are_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Not by matplotlib, letter by letter and figure by figure; a page has them as text, for the browser's fonts."""
    plots._warn_of_missing_glyphs.cache_clear()
    letters = "\U000e0ffe\U000e0fff"
    panels = [Panel("named", (2, 2), lambda axis: axis.set_title(f"“{letters}”"))]
    for _ in range(2):
        save_panels(panels, tmp_path / "figure.png")
    assert len(caplog.messages) == 1 and "have boxes for letters that no font" in caplog.text
    assert letters in panels[0].svg()


def test_figures_in_the_page_take_its_colors(text: str) -> None:
    """A drawing a task and a loss, each named, transparent, with text and lines in the page's own colors."""
    page = Page(text)
    tasks, losses = [f"Scores on {task} by model" for task in ("cloze", "text", "digits")], 3
    assert page.labels[:3] == tasks and page.tags.count("svg") == len(page.labels) == len(tasks) + losses
    drawings = [part.partition("</svg>")[0] for part in text.split("<svg")[1:]]
    for drawing in drawings:
        assert "fill: var(--ink)" in drawing and "#ffffff" not in drawing and "#000000" not in drawing
    assert "validation" in page.labels[-1].lower() and "stories" in drawings[-1]
    assert "as lines in the figures: 95% intervals" in text


def test_sampled_questions_show_their_pictures(text: str) -> None:
    """The picture of the held-out row that was asked, small; a text has none, and a mark of a picture is not shown."""
    page = Page(text)
    [uri] = [source for source in page.sources if source.startswith("data:")]
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
        red, green, blue = image.convert("RGB").getpixel((5, 5))
        assert max(image.size) < 300 and red > 200 and green < 60 and blue < 60
    assert ">Which digit?" in text and "<image>Which" not in page.text


def test_samples_are_shown_without_the_corpus(run_dir: Path) -> None:
    """A corpus that was deleted takes pictures and counts with it, not the answers."""
    (run_dir / "corpus.json").write_text(json.dumps({"path": str(run_dir / "gone")}))
    page = Page(write_report(run_dir).read_text(encoding="utf-8"))
    assert "Which digit?" in page.text and not any(source.startswith("data:") for source in page.sources)


def test_an_answer_stands_by_its_own_question() -> None:
    """Where data changed on the way, another row may lie at the place of one that was asked before."""
    asked = [("old?", "of the old", 5), ("new?", "of the new", 10)]
    of_run, of_control = (
        [
            {
                "source": "s",
                "position": 0,
                "step": step,
                "question": question,
                "expected": "",
                "answer": f"{who} {said}",
            }
            for question, said, step in records
        ]
        for who, records in (("run", asked), ("control", asked[:1]))
    )
    found = held_out_answers({"distilled": of_run, "plain_ce": of_control}, None)
    assert found is not None and [row.answers for row in found.rows] == [{"distilled, step 10": "run of the new"}]


def test_passes_are_those_that_training_made(text: str) -> None:
    """10 steps of 4 rows over an order of 8 with 6 of 5 stories are 6 passes, whatever the order alone would be."""
    stories = text[text.index("<tr><th>stories</th>") :].partition("</tr>")[0]
    cells = [Page(f"<p>{cell}</p>").text.strip() for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", stories)]
    assert cells[:7] == ["stories", "yes", "75.0%", "0.2", "0.7", "5", "6.00"]


def test_passes_are_counted_since_the_data_changed(run_dir: Path, reported: Path) -> None:
    """Of 10 steps the last 5 read this corpus: half of the passes, and the page says of which steps."""
    pointer = json.loads((run_dir / "corpus.json").read_text(encoding="utf-8"))
    (run_dir / "corpus.json").write_text(json.dumps(pointer | {"since": 5}))
    text = write_report(run_dir).read_text(encoding="utf-8")
    assert '<td class="number">3.00</td>' in text and "Since step 5: up to it training read other data" in text


def test_a_run_by_cross_entropy_alone_is_named_so(run_dir: Path, config: Config) -> None:
    """Without a teacher nothing is distilled: neither a source nor the model's answers are called so."""
    alone = config.model_copy(update={"distill": config.distill.model_copy(update={"policy": "none"})})
    (run_dir / "config.yaml").write_text(to_yaml(alone))
    page = Page(write_report(run_dir).read_text(encoding="utf-8"))
    assert "plain CE, step 10" in page.text and "distilled, step 10" not in page.text


def test_versions_are_shown(run_dir: Path, text: str) -> None:
    """The run's environment.json as a table; a run without one has none."""
    assert "<h2>Versions</h2>" not in text
    (run_dir / "environment.json").write_text('{"torch": "2.9.0", "git.commit": "abc"}')
    page = write_report(run_dir).read_text(encoding="utf-8")
    assert "<tr><th>git.commit</th><td>abc</td></tr>" in page and "2.9.0" in Page(page).text


def test_a_task_that_the_means_hide_is_in_the_first_line(run_dir: Path) -> None:
    """The page's heading is the verdict with its exceptions, in a color of its own."""
    result = read_recovery(run_dir / "report")
    assert result is not None
    exception = "sentences: retention 95.0% [91.5, 99.3] is below 99%"
    mixed = Verdict(True, f"The claim holds, but not on every task: 97%; {exception}.", (exception,))
    write_recovery(replace(result, verdict=mixed), run_dir / "report")
    page = write_report(run_dir).read_text(encoding="utf-8")
    assert mixed.text in Page(page).text and "--tone: var(--mixed)" in page


def test_report_of_a_run_without_anything(tmp_path: Path) -> None:
    """What is missing is left out; the page says that nothing was evaluated."""
    page = Page(write_report(tmp_path / "bare").read_text(encoding="utf-8"))
    assert "has not been evaluated: it has not ended" in page.text and not page.sources


def test_report_of_a_run_that_was_not_evaluated(run_dir: Path) -> None:
    """The page says so and has the command that measures its models, as the command line reads it."""
    (run_dir / "report" / "recovery.json").unlink()
    (run_dir / "export").mkdir()
    page = Page(write_report(run_dir).read_text(encoding="utf-8"))
    assert "This run has not been evaluated." in page.text
    [line] = [line for line in page.text.splitlines() if line.startswith("python -m lingu_ray.evaluate teacher=")]
    models, settings = read_arguments(shlex.split(line)[3:])
    assert models["distilled"] == run_dir / "export" and settings.out == run_dir / "evaluation"


def test_report_of_an_evaluation_without_a_run(run_dir: Path) -> None:
    """The same scores and figures beside each other, under the evaluation's own name; nothing of a training."""
    out = run_dir / "report"
    result = read_recovery(out)
    assert result is not None
    page = Page(write_evaluation(result, out).read_text(encoding="utf-8"))
    assert len(page.labels) == 3 and "lingu_ray evaluation report" in page.text and "58.0%" in page.text
    assert "Throughput" not in page.text and (out / "recovery.png").exists()


def test_a_model_that_has_diverged_does_not_keep_the_others_from_their_page(tmp_path: Path) -> None:
    """Its perplexity may be more than a number holds; it is shown as huge, and what is in nats is as it is."""
    task = TaskConfig(name="text", kind="language", type="perplexity", path="-")
    for model, nats in (("teacher", 3.0), ("adapted", 5.0), ("distilled", 4000.0)):
        write_measured(tmp_path, task, model, [nats + i for i in range(9)], [1.0] * 9)
    result = summarize(tmp_path, ["teacher", "adapted", "distilled"], EvaluationConfig(tasks=(task,), bootstrap=50))
    assert result.tasks["text"].models["distilled"].extra == {"nats_per_token": 4004.0}
    page = Page(write_evaluation(result, tmp_path).read_text(encoding="utf-8"))
    assert "1.0e+304" in page.text and "1e280" in page.text and "1,097" in page.text


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (4, 4), pytest.param(17, 5, marks=pytest.mark.slow)])
def test_figures_grow_with_the_tasks(tmp_path: Path, count: int, columns: int) -> None:
    """A panel a task; in the PNG each panel has the same room, however many there are."""
    tasks = tuple(TaskConfig(name=f"task_{i}", kind="language", type="multiple_choice", path="-") for i in range(count))
    for task in tasks:
        for model, right in (("teacher", 90), ("adapted", 30), ("distilled", 80)):
            write_measured(tmp_path / "report", task, model, [float(i < right) for i in range(100)])
    summarize(tmp_path / "report", ["teacher", "adapted", "distilled"], EvaluationConfig(tasks=tasks, bootstrap=50))
    result = read_recovery(tmp_path / "report")
    assert result is not None
    assert [panel.title.split()[2] for panel in recovery_panels(result)] == [task.name for task in tasks]
    plot_recovery(result, tmp_path / "recovery.png")
    with Image.open(tmp_path / "recovery.png") as image:
        width, height = (side / 160 for side in image.size)
    rows = -(-count // columns)
    assert 3 * columns < width < 3.5 * columns + 1.5 and 3.2 * rows < height < 3.6 * rows + 2.6


def test_many_models_are_told_apart(tmp_path: Path) -> None:
    """Each has a color of its own, the roles theirs, and room for its number; a few models have panels as before."""
    task = TaskConfig(name="cloze", kind="language", type="multiple_choice", path="-")
    models = ["teacher", "adapted", "distilled", *(f"variant-{i}" for i in range(9))]
    for model in models:
        write_measured(tmp_path, task, model, [float(i < 5) for i in range(9)])
    settings = EvaluationConfig(tasks=(task,), bootstrap=50)
    colors = model_colors(models)
    assert len(set(colors.values())) == len(models) and colors["distilled"] == COLORS["distilled"]
    widths = [recovery_panels(summarize(tmp_path, measured, settings))[0].size[0] for measured in (models, models[:6])]
    assert widths == [len(models) / 2, 3.1]


def test_report_with_a_null_recovery_and_an_extra_model(tmp_path: Path) -> None:
    """Null fields and models beyond the four are drawn and told, not stumbled over."""
    task = TaskConfig(name="cloze", kind="language", type="multiple_choice", path="-")
    for model in ("adapted", "interpolated"):
        write_measured(tmp_path / "report", task, model, [0.0, 0.0])
    summarize(tmp_path / "report", ["adapted", "interpolated"], EvaluationConfig(tasks=(task,), bootstrap=50))
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "interpolated" in page.text and "not measured: teacher, distilled" in page.text


def test_a_score_stands_beside_those_of_baseline_and_control(text: str) -> None:
    """How much better the distilled model is, in points, and what of the loss the control has by itself."""
    table = text[text.index("Distilled against the others") :]
    cloze = Page(table[table.index("<tr><th>cloze</th>") :].partition("</tr>")[0] + "</tr>").text
    number = r"\[[\d.]+, [\d.]+\]"
    assert re.search(rf"28\.0 {number} points", cloze)
    assert re.search(rf"18\.0 {number} points own recovery 33% {number}", cloze)


def test_the_papers_table(tmp_path: Path) -> None:
    """Averages by kind over tasks that are shares, others by themselves, and the gain over fine-tuning."""
    tasks = tuple(
        TaskConfig(name=name, kind=kind, type=type, path="-")
        for name, kind, type in (
            ("arc", "language", "multiple_choice"),
            ("piqa", "language", "multiple_choice"),
            ("text", "language", "perplexity"),
            ("docs", "vision", "exact_match"),
        )
    )
    levels = {
        "original_vlm": (60, 70, 80),
        "fine_tuned": (40, 50, 80),
        "distilled": (58, 68, 76),
        "teacher": (62, 72, 0),
    }
    for model, (arc, piqa, docs) in levels.items():
        for task, right in zip(tasks, (arc, piqa, None, docs), strict=True):
            if task.kind == "language" or model != "teacher":
                scores = [2.0] * 100 if right is None else [float(i < right) for i in range(100)]
                write_measured(tmp_path, task, model, scores)
    result = summarize(tmp_path, list(levels), EvaluationConfig(tasks=tasks, bootstrap=50))
    rows = {row.label: (row.levels, row.gain) for row in paper_rows(result)}
    assert rows == {
        "language, average of 2": (["0.650", "0.450", "0.630"], "+40.0%"),
        "vision, average of 1": (["0.800", "0.800", "0.760"], "-5.0%"),
        "text": (["7.39", "7.39", "7.39"], "+0.0%"),
    }
    page = Page(write_evaluation(result, tmp_path).read_text(encoding="utf-8")).text
    assert "As in the paper" in page and "Recovery = (distilled − fine_tuned) / (original_vlm − fine_tuned)" in page


@pytest.mark.parametrize("recovery_in", ["metric", "nats"])
def test_the_papers_averages_are_over_the_tasks_of_the_mean(tmp_path: Path, recovery_in: Any) -> None:
    """A task with `in_mean: false` is in none, whatever recovery is counted in."""
    tasks = tuple(
        TaskConfig(name=name, kind="language", type="multiple_choice", path="-", in_mean=name != "trained_on")
        for name in ("arc", "trained_on")
    )
    for model, levels in {"original_vlm": (60, 20), "fine_tuned": (40, 50), "distilled": (50, 90)}.items():
        for task, right in zip(tasks, levels, strict=True):
            write_measured(tmp_path, task, model, [float(i < right) for i in range(100)])
    models = ["original_vlm", "fine_tuned", "distilled"]
    settings = EvaluationConfig(tasks=tasks, bootstrap=50, recovery_in=recovery_in)
    (row,) = paper_rows(summarize(tmp_path, models, settings))
    assert (row.label, row.levels) == ("language, average of 1", ["0.600", "0.400", "0.500"])


@pytest.mark.parametrize(("metric", "said"), [("acc", "a stone"), ("acc_norm", "the heat that the Sun gives off")])
def test_the_answer_that_is_shown_is_the_one_that_is_judged(tmp_path: Path, metric: Any, said: str) -> None:
    """By likelihood, or by likelihood per character: the same option that the score takes for the model's."""
    task = TaskConfig(name="arc_easy", kind="language", type="multiple_choice", metric=metric, path="-")
    options = ["a stone", "the heat that the Sun gives off"]
    columns = {"item": ["1", "2"], "logliks": [[-9.0, -14.0]] * 2, "gold": [1, 1]}
    columns |= {"lengths": [[len(option) for option in options]] * 2}
    sample = {"asked": "What melts ice?", "images": [], "options": options}
    path = items_path(tmp_path, task.name, "teacher")
    write_items(path, columns | {SAMPLE: [sample] * 2}, None)
    result = summarize(tmp_path, ["teacher"], EvaluationConfig(tasks=(task,), bootstrap=50))
    shown = answered(tmp_path, result).rows[0]
    right = result.tasks[task.name].models["teacher"].score.value == 1.0
    assert list(shown.answers.values()) == [said] and right == (said == shown.expected)


def test_throughput_weighs_the_shares_by_time() -> None:
    """A long step's waiting counts for more; validations are no steps."""
    short = {**STEP, "step": 1, "step_s": 1.0, "data_wait": 0.0, "teacher_wait": 0.5}
    long = {**STEP, "step": 2, "step_s": 3.0, "data_wait": 0.4, "teacher_wait": 0.5, "tokens_per_s": 100.0}
    found = throughput([short, long, {"step": 2, "validation": {}}])
    assert found is not None and (found.steps, found.seconds, found.supervised_tokens) == (2, 4.0, 200)
    assert (found.tokens_per_s, found.data_wait, found.teacher_wait) == pytest.approx((300.0, 0.3, 0.5))
    assert throughput([]) is None


def test_the_page_says_how_many_workers_trained(tmp_path: Path) -> None:
    """Each number of workers with its first step, where it changed; nothing where it did not."""
    for numbers, shown in (((2, 2), False), ((1, 1, 2, 2, 1), True)):
        shares = {"step_s": 1.0, "data_wait": 0.0, "teacher_wait": 0.0}
        records = [{**STEP, **shares, "step": i + 1, "workers": n, "time": 1e9} for i, n in enumerate(numbers)]
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        text = Page(write_report(tmp_path).read_text(encoding="utf-8")).text
        assert ("Workers: 1 from step 1 on, 2 from step 3 on, 1 from step 5 on." in text) == shown


@pytest.mark.parametrize("count", [1, 2, 19, 45, 403])
def test_curves_are_moving_means(count: int) -> None:
    """A twentieth of the values around each, fewer at both ends."""
    values = np.random.default_rng(0).normal(size=count)
    window = max(1, count // 20)
    means = [values[max(0, at - window // 2) : at + (window + 1) // 2].mean() for at in range(count)]
    assert plots.smooth(values) == pytest.approx(means, abs=1e-12)
