"""The demo's stages: what is written, when it is found again, and that the teacher learns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lingu_ray.config import DemoConfig, EvaluationConfig, SourceConfig
from lingu_ray.config.command_line import read_run
from lingu_ray.corpus.formats import prompt_completion
from lingu_ray.demo import prepare, teacher
from lingu_ray.errors import UserError
from lingu_ray.evaluation.tasks.load import load_task

pytestmark = pytest.mark.slow  # writes the demo's data, and trains

SMALL = DemoConfig(
    hidden_size=32,
    heads=1,
    layers=1,
    vocabulary=400,
    teacher_steps=30,
    cloze_items=50,
    word_items=20,
    vision_items=20,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "data"
    folder.mkdir()
    prepare.write_data(folder, SMALL, seed=0)
    return folder


def test_teacher_learns_and_is_reproducible(data: Path, tmp_path: Path) -> None:
    """A few steps lower the loss well below that of guessing, and the same seed gives the same weights."""
    tokenizer = prepare.PreTrainedTokenizerFast.from_pretrained(data / "tokenizer")
    lines = (data / "running.jsonl").read_text().splitlines()[:40]
    told = [prepare.Chat("What is it?", "It is a list.")]
    stream = teacher.token_stream(tokenizer, [json.loads(line)["text"] for line in lines], told)
    models = []
    for _ in range(2):
        models.append(teacher.build_teacher(SMALL, tokenizer, seed=0))
        losses = teacher.train_teacher(models[-1], stream, steps=SMALL.teacher_steps, seed=0)
    assert losses[-1] < losses[0] - 1
    states = [model.state_dict() for model in models]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_sources_and_tasks_are_what_the_other_rooms_read(data: Path) -> None:
    """Every record is understood by its format, its images exist, and every evaluation task loads."""
    for settings in prepare.distillation_sources(data) + prepare.adapting_sources(data):
        source = SourceConfig.model_validate(settings)
        for line in Path(source.path).read_text(encoding="utf-8").splitlines():
            for raw_row in prompt_completion(json.loads(line), source):
                assert all((data / "images" / image).is_file() for image in raw_row.images)
    evaluation = EvaluationConfig.model_validate({"tasks": prepare.tasks(data)})
    counts = {task.name: len(load_task(task).items) for task in evaluation.tasks}
    assert counts == {"cloze": 50, "perplexity": 150, "next_word": 20, "digits": 20, "sentences": 20}


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("student.path=org/vlm", "student"),
        ("student.role=original_vlm", "student"),
        ("teacher.path=org/lm", "teacher.path"),
        ("evaluation.tasks=[piqa]", "evaluation.tasks"),
        ("corpus.sources=[{name: mine, format: messages, path: a.jsonl, language_heavy: true}]", "corpus.sources"),
    ],
)
def test_what_the_demo_fills_in_is_not_given(given: str, named: str, tmp_path: Path) -> None:
    """It would be replaced in silence; what is filled in already, as in a run's config.yaml, is taken."""
    out = f"output_dir={tmp_path}"
    with pytest.raises(UserError, match=rf"^{named}: the demo makes its own: .* demo=null"):
        prepare.filled(read_run("demo", [out, given]))
    full = prepare.filled(read_run("demo", [out, "teacher.placement=in_process", "evaluation.blind=true"]))
    assert prepare.filled(full) == full and full.teacher.placement == "in_process" and full.evaluation.blind


def test_fingerprint_follows_settings_and_seed() -> None:
    """Other settings or another seed are other folders; the same ones are the same."""
    mark = prepare.fingerprint(SMALL, 0)
    assert mark == prepare.fingerprint(SMALL.model_copy(), 0)
    assert mark != prepare.fingerprint(SMALL, 1)
    assert mark != prepare.fingerprint(SMALL.model_copy(update={"teacher_steps": 31}), 0)


def test_a_stage_is_made_once_and_never_half(tmp_path: Path) -> None:
    """A stage that failed leaves nothing that is taken for whole; one that is whole is not made again."""
    made: list[Path] = []

    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError("no space left")

    def make(folder: Path) -> None:
        assert not list(folder.iterdir())
        (folder / "whole").touch()
        made.append(folder)

    with pytest.raises(OSError, match="no space left"):
        prepare.stage(tmp_path / "stage", fail)
    assert not (tmp_path / "stage").exists()
    for _ in range(2):
        assert (prepare.stage(tmp_path / "stage", make) / "whole").exists()
    assert len(made) == 1
