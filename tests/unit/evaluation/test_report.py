"""The report and the model card, from a small run folder made by hand."""

from __future__ import annotations

import base64
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from measured import write_measured
from PIL import Image

from lingu_ray.config import Config, EvaluationConfig, TaskConfig
from lingu_ray.evaluation.model_card import write_model_card
from lingu_ray.evaluation.recovery import summarise
from lingu_ray.evaluation.report import manifest, throughput, write_report

STEP = {
    "lr": 1e-4,
    "grad_norm": 1.0,
    "temperature": 1.0,
    "w_ce": 1.0,
    "w_kd": 1.0,
    "tokens": 100,
    "tokens_per_s": 500.0,
}


class Page(HTMLParser):
    """Collects the tags, the text and what the page refers to; every tag that opens must close."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
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
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def config() -> Config:
    """The smallest settings."""
    return Config.model_validate(
        {
            "name": "small",
            "student": {"path": "owner/vlm"},
            "teacher": {"path": "models/lm"},
            "tracking": {"uri": "https://user:secret@mlflow.example/path"},
            "corpus": {"sources": [{"name": "stories", "form": "text", "path": "x", "language_heavy": True}]},
        }
    )


@pytest.fixture
def run_dir(tmp_path: Path, config: Config) -> Path:
    """A finished run: metrics, samples, control, corpus manifest and measured items."""
    run = tmp_path / "small"
    write_lines(run / "metrics.jsonl", steps(kd=0.3))
    write_lines(run / "control" / "metrics.jsonl", steps(kd=None))
    sample = {"source": "stories", "position": 0, "question": "<script>alert(1)</script>", "expected": "an end"}
    write_lines(
        run / "samples.jsonl", [{"step": 5, **sample, "answer": "<b>x"}, {"step": 10, **sample, "answer": "the end"}]
    )
    write_lines(run / "control" / "samples.jsonl", [{"step": 10, **sample, "answer": "of the control"}])
    (run / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    counts = {"read": 9, "rejected": {"empty answer": 2}, "truncated": 1, "used": 6, "passes": 1.5, "validation": 3}
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "manifest.json").write_text(
        json.dumps({"rows": 6, "sources": {"stories": counts | {"distill": True}}})
    )
    (run / "corpus.json").write_text(json.dumps({"path": str(tmp_path / "corpus")}))
    tasks = (
        TaskConfig(name="cloze", kind="language", type="multiple_choice", path="-"),
        TaskConfig(name="text", kind="language", type="perplexity", path="-"),
        TaskConfig(name="digits", kind="vision", type="exact_match", path="-"),
    )
    scores = {"teacher": (0.6, 3.0), "adapted": (0.3, 9.0), "ce_only": (0.4, 5.0), "distilled": (0.58, 3.2)}
    for model, (share, nats) in scores.items():
        right = [float(i < share * 200) for i in range(200)]
        cloze, text, digits = tasks
        write_measured(run / "report", cloze, model, right)
        write_measured(run / "report", text, model, [nats + i % 3 for i in range(200)])
        if model != "teacher":
            write_measured(run / "report", digits, model, [1.0] * 200)
    summarise(run / "report", list(scores), EvaluationConfig(tasks=tasks, bootstrap=200))
    return run


def test_report_is_one_whole_page(run_dir: Path) -> None:
    """Valid nesting, verdict first, every part there, images inside, nothing loaded from elsewhere, text escaped."""
    page = Page(write_report(run_dir).read_text(encoding="utf-8"))
    assert len(page.sources) == 2 and all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "script" not in page.tags and "b" in page.tags and "<script>alert(1)</script>" in page.text
    verdict = json.loads((run_dir / "report" / "recovery.json").read_text())["summary"]["verdict"]
    assert verdict.startswith("The claim holds") and verdict in page.text
    for part in ("58.0%", "2 empty answer", "of the control", "the end", "10.0%", "20.0%", "train.steps", "owner/vlm"):
        assert part in page.text, part
    assert "corpus.sources[stories].form" in page.text
    assert "mlflow.example" in page.text and "secret" not in page.text


def test_figures_are_images(run_dir: Path) -> None:
    """loss.png and recovery.png open, and the page holds the same bytes."""
    page = Page(write_report(run_dir).read_text(encoding="utf-8"))
    embedded = {base64.b64decode(source.partition(",")[2]) for source in page.sources}
    for name in ("loss.png", "recovery.png"):
        path = run_dir / "report" / name
        with Image.open(path) as image:
            image.load()
            assert image.format == "PNG" and image.width > 800
        assert path.read_bytes() in embedded


def test_report_of_a_run_without_anything(tmp_path: Path) -> None:
    """What is missing is left out; the page says that nothing was evaluated."""
    page = Page(write_report(tmp_path / "bare").read_text(encoding="utf-8"))
    assert "has not been evaluated" in page.text and not page.sources


def test_report_with_a_null_recovery_and_an_extra_model(tmp_path: Path) -> None:
    """Null fields and models beyond the four are drawn and told, not stumbled over."""
    task = TaskConfig(name="cloze", kind="language", type="multiple_choice", path="-")
    for model in ("adapted", "interpolated"):
        write_measured(tmp_path / "report", task, model, [0.0, 0.0])
    summarise(tmp_path / "report", ["adapted", "interpolated"], EvaluationConfig(tasks=(task,), bootstrap=50))
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "interpolated" in page.text and "not measured: teacher, distilled" in page.text


def test_throughput_weighs_the_shares_by_time() -> None:
    """A long step's waiting counts for more; validations are no steps."""
    short = {**STEP, "step": 1, "step_s": 1.0, "data_wait": 0.0, "teacher_wait": 0.5}
    long = {**STEP, "step": 2, "step_s": 3.0, "data_wait": 0.4, "teacher_wait": 0.5, "tokens_per_s": 100.0}
    found = throughput([short, long, {"step": 2, "validation": {}}])
    assert found == pytest.approx(
        {
            "steps": 2,
            "seconds": 4.0,
            "supervised_tokens": 200,
            "tokens_per_s": 300.0,
            "data_wait": 0.3,
            "teacher_wait": 0.5,
        }
    )
    assert throughput([]) is None


def test_model_card(run_dir: Path, config: Config, tmp_path: Path) -> None:
    """Front matter that parses, hub ids alone as base models, data, settings and results; no path of this machine."""
    result = json.loads((run_dir / "report" / "recovery.json").read_text())
    card = write_model_card(tmp_path, config, result, manifest(run_dir)).read_text(encoding="utf-8")
    _, front, body = card.split("---\n", 2)
    matter = yaml.safe_load(front)
    assert matter["base_model"] == ["owner/vlm"] or matter["base_model"] == ["owner/vlm", "models/lm"]
    assert matter["library_name"] == "transformers" and matter["pipeline_tag"] == "image-text-to-text"
    for part in (result["summary"]["verdict"], "| stories | yes | 9 | 2 | 6 | 1.50 |", "AutoModelForImageTextToText"):
        assert part in body
    rows = [line for line in body.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in rows)


def test_model_card_hides_local_paths(config: Config, tmp_path: Path) -> None:
    """A local folder is named by its last part; an evaluation or manifest that is not there is left out."""
    local = config.model_copy(update={"student": config.student.model_copy(update={"path": str(tmp_path / "my-vlm")})})
    card = write_model_card(tmp_path, local, None, None).read_text(encoding="utf-8")
    assert str(tmp_path) not in card and "| student | my-vlm |" in card and "## Results" not in card
