"""The alignment of a tiny VLM on drawn pictures."""

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import psutil
import pyarrow as pa
import pytest
import tinyrun
import torch
from PIL import Image, ImageDraw
from ray.exceptions import OutOfMemoryError, RayError
from safetensors.torch import load
from tiny import tiny_student, tiny_teacher

from lingu_ray.atomic import write_json
from lingu_ray.config import Config
from lingu_ray.corpus.pictures import choose_targets, read_pictures
from lingu_ray.corpus.store import ROW_SCHEMA, Corpus, shard_name, write_rows
from lingu_ray.errors import UserError
from lingu_ray.runtime.alignment.process import KEPT_SHARE, AlignJob, Alignment, aligned_student
from lingu_ray.runtime.alignment.stage import _equal_one, _run, align, doubt_of_sight, load_alignment
from lingu_ray.runtime.models.load import load_student
from lingu_ray.runtime.resume import model_contents
from lingu_ray.runtime.run_folder.folder import RunFolder

COLORS = {"red": (200, 30, 30), "green": (30, 170, 40), "blue": (40, 60, 210), "white": (240, 240, 240)}
PLACES = ("top", "bottom")
TRAINED, HELD_OUT = 96, 24


def drawing(index: int) -> tuple[bytes, str, str]:
    """A circle, encoded, with the names of its color and place."""
    color, place = list(COLORS)[index % 4], PLACES[index // 4 % 2]
    image = Image.new("RGB", (32, 32), (0, 0, 0))
    x, y, size = index % 11, index % 3 + 16 * (place == "bottom"), 11 + index % 5
    ImageDraw.Draw(image).ellipse((x, y, x + size, y + size), fill=COLORS[color])
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue(), color, place


def row(index: int, position: int) -> dict:
    """A drawing, of which color and place are asked."""
    image, color, place = drawing(index)
    texts = ("<image>Which color?", color, "Where is it?", place)
    roles = ("user", "assistant") * 2
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
    return {"source": "pictures", "position": position, "messages": messages, "images": [image], "distill": False}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pair, and a corpus of drawings."""
    folder = tmp_path_factory.mktemp("align")
    tiny_student(tiny_teacher(folder=folder / "teacher"), folder=folder / "student")
    write_corpus(folder / "corpus", TRAINED)
    return folder


def write_corpus(folder: Path, rows: int) -> None:
    folder.mkdir()
    order = torch.randperm(TRAINED + HELD_OUT, generator=torch.Generator().manual_seed(0)).tolist()
    trained = [row(index, position) for position, index in enumerate(order[:rows])]
    held_out = [row(index, position) for position, index in enumerate(order[TRAINED:])]
    write_rows(pa.Table.from_pylist(trained, ROW_SCHEMA), folder / shard_name(0))
    write_rows(pa.Table.from_pylist(held_out, ROW_SCHEMA), folder / "validation.parquet")
    write_json(folder / "manifest.json", {"rows": rows, "rows_per_shard": 1000, "sources": {"pictures": {}}})


def settings(data: Path, output_dir: Path, **align) -> Config:
    rates = {"vision": 3e-4, "projector": 1e-2}
    few = {"epochs": 16, "pictures_per_step": 16, "blocks": 1, "learning_rates": rates}
    return tinyrun.config(data, output_dir, align=few | align, distill={"policy": "none"})


def aligned(data: Path, config: Config) -> dict:
    """The last word of the process, run here."""
    assert config.align is not None
    *progress, last = aligned_student(AlignJob(config, config.align, data / "student", data / "corpus", "cpu", 1))
    assert [one["done"] for one in progress if one["stage"] == "training"] == [*range(1, 1 + 6 * config.align.epochs)]
    return last


@pytest.mark.slow
def test_a_tiny_model_learns_to_see(data: Path, tmp_path: Path):
    """Held-out pictures choose color and place at chance before and nearly always right after; nothing else changed.

    What changed are projector and last block: the language model is the same to the bit.
    """
    config = settings(data, tmp_path)
    last = aligned(data, config)
    found = last["record"]["held_out"]["pictures"]
    assert (found["answers"], last["record"]["pictures"], last["record"]["answers"]) == (48, TRAINED, 2 * TRAINED)
    assert found["before"] < 0.6 and 0.2 < found["blind"] < 0.6 and found["after"] > 0.9, found
    weights = load(last["weights"])
    assert all("connector" in name or "vision_model.encoder.layers.1." in name for name in weights)
    assert {name.split(".")[1] for name in weights} == {"connector", "vision_model"}

    folder = RunFolder(tmp_path / "run")
    folder.alignment.parent.mkdir(parents=True)
    folder.aligned_weights.write_bytes(last["weights"])
    model, before = (load_student(config.student) for _ in range(2))
    load_alignment(model, folder.aligned_weights)
    for (name, now), (_, then) in zip(model.named_parameters(), before.named_parameters(), strict=True):
        assert torch.equal(now, then) is (name not in weights), name


@pytest.mark.slow
def test_equal_settings_give_equal_bytes(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Twice the same, to the bit, with features kept and without memory for any."""
    config = settings(data, tmp_path, epochs=2)
    first = aligned(data, config)["weights"]
    monkeypatch.setattr("lingu_ray.runtime.alignment.process.KEPT_SHARE", 0)
    assert aligned(data, config)["weights"] == first


def test_kept_features_stay_within_a_containers_memory(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Their room follows from what processes may use, not from what the machine has."""
    monkeypatch.setattr("lingu_ray.runtime.alignment.process.host_memory", lambda: 2**20)
    config = settings(data, tmp_path)
    assert config.align is not None
    job = AlignJob(config, config.align, data / "student", data / "corpus", "cpu", 1)
    corpus = Corpus(job.corpus_dir)
    assert Alignment(job, corpus, choose_targets(read_pictures(corpus, 9))).room == KEPT_SHARE * 2**20


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), OutOfMemoryError("full"), RayError()])
def test_too_little_memory_names_the_settings(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    """Of a GPU, of the node, or of a process that died without a word: what is kept of pictures is a cause."""

    def followed(*_: object) -> None:
        raise error

    monkeypatch.setattr("lingu_ray.runtime.alignment.stage.ray", MagicMock())
    monkeypatch.setattr("lingu_ray.runtime.alignment.stage.uses_gpu", lambda _: False)
    monkeypatch.setattr("lingu_ray.runtime.alignment.stage._followed", followed)
    folder, config = RunFolder(tmp_path / "run"), settings(data, tmp_path)
    folder.root.mkdir()
    write_json(folder.models, model_contents(config))
    with pytest.raises(UserError, match=r"^align.* lower train.tokens_per_micro_batch or align.max_rows"):
        align(config, folder, Corpus(data / "corpus"), "fingerprint")


@pytest.mark.slow
def test_its_process_ends_before_training(
    ray_cluster: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What it holds of a GPU is the workers' then. Ray would keep it, for the next task that comes."""

    def stand_in(job: AlignJob) -> Iterator[dict[str, Any]]:
        yield {"weights": b"", "record": {"process": os.getpid()}}

    monkeypatch.setattr("lingu_ray.runtime.alignment.stage.aligned_student", stand_in)
    config = settings(data, tmp_path)
    assert config.align is not None
    done = _run(config, config.align, RunFolder(tmp_path / "run"), Corpus(data / "corpus"))
    with suppress(psutil.NoSuchProcess):
        psutil.Process(done["record"]["process"]).wait(timeout=120)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can put itself in the place of another user")
def test_folders_of_others_are_passed_by():
    """A colleague's run, or a disk's lost+found, beside the run is not looked into, and ends nothing."""
    with tempfile.TemporaryDirectory(dir="/tmp") as shared:  # which everybody may enter
        theirs = Path(shared, "theirs")
        (theirs / "initial_model").mkdir(parents=True)
        theirs.chmod(0o700)
        Path(shared).chmod(0o755)
        if (process := os.fork()) == 0:
            code = 2  # of whatever is raised
            try:
                os.setuid(65534)  # nobody
                code = int(_equal_one(RunFolder(Path(shared, "mine")), "an identity") is not None)
            finally:
                os._exit(code)
        assert os.waitpid(process, 0)[1] == 0


def test_a_damaged_record_of_another_run_is_passed_by(tmp_path: Path):
    """It is no reason to end this run, which can align by itself."""
    other = RunFolder(tmp_path / "other")
    other.alignment.parent.mkdir(parents=True)
    other.alignment.write_text('{"identity": "an id', encoding="utf-8")
    assert _equal_one(RunFolder(tmp_path / "mine"), "an identity") is None


def test_a_corpus_without_pictures_is_refused(data: Path, tmp_path: Path):
    """The message names the setting, what was read, and why nothing of it teaches."""
    write_corpus(tmp_path / "corpus", 1)
    config = settings(data, tmp_path)
    assert config.align is not None
    job = AlignJob(config, config.align, data / "student", tmp_path / "corpus", "cpu", 1)
    with pytest.raises(
        UserError, match=r"align: no picture .* 1 rows read.* 2 answers are to questions with one answer"
    ):
        next(aligned_student(job))


@pytest.mark.parametrize(
    ("after", "answers", "doubt"),
    [
        (0.9, 14, None),
        (0.7, 14, "14 answers are too few to tell. Raise corpus.validation_rows"),
        (0.7, 1000, None),
        (0.5, 1000, "sees nothing there"),
        (0.1, 1000, "sees nothing there"),
        (0.1, 1, "too few"),
    ],
)
def test_sight_is_doubted_where_it_is_not_shown(after: float, answers: int, doubt: str | None):
    """The commonest answer is right for half: more than two standard errors above that is sight; a handful of answers
    is no reason to say that there is none."""
    said = doubt_of_sight({"after": after, "before": 0.1, "blind": 0.5, "answers": answers})
    assert said is None if doubt is None else doubt in str(said)
