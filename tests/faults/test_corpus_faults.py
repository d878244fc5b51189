"""A corpus that is not whole, or whose source is not: it is never taken for good, and what is wrong is named."""

import json
import sys
import tarfile
from pathlib import Path

import pytest
from commands import Command
from tiny import picture, tiny_processor

from lingu_ray.config import Config
from lingu_ray.corpus.build import build_corpus
from lingu_ray.errors import UserError

pytestmark = [pytest.mark.slow, pytest.mark.faults]

ROWS = 400
BUILD = """
import sys
from pathlib import Path
import ray
from lingu_ray.config import Config
from lingu_ray.corpus.build import build_corpus
config = Config.model_validate_json(Path(sys.argv[1]).read_text())
ray.init(sys.argv[3])
build_corpus(config, Path(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def processor_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processor")
    tiny_processor(folder)
    return folder


def config(folder: Path, path: Path, format: str = "prompt_completion", **corpus) -> Config:
    source = {"name": "words", "format": format, "path": str(path)}
    return Config.model_validate(
        {
            "name": "run",
            "output_dir": folder / "runs",
            "student": {"path": "student"},
            "teacher": {"path": "teacher"},
            "distill": {"policy": "all"},
            "corpus": {"sources": [source], "validation_rows": 5, "rows_per_shard": 10, "max_length": 128, **corpus},
        }
    )


def write_words(folder: Path, count: int = ROWS) -> Path:
    path = folder / "words.jsonl"
    records = [{"prompt": f"words {i}?", "completion": f"answer {i}"} for i in range(count)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_a_killed_build_is_never_taken_for_a_corpus(tmp_path, processor_dir, ray_cluster):
    """SIGKILL while shards are written: no corpus is found afterwards, and the next build makes a whole one."""
    settings = config(tmp_path, write_words(tmp_path))
    (tmp_path / "config.json").write_text(settings.model_dump_json())
    argv = [sys.executable, "-c", BUILD, str(tmp_path / "config.json"), str(processor_dir), ray_cluster]
    with Command(argv) as build:
        build.wait_for(lambda: list(settings.corpora_dir.glob(".*.tmp/shard-*")))
        build.kill()
    assert all(path.name.startswith(".") for path in settings.corpora_dir.iterdir())
    corpus = build_corpus(settings, processor_dir)
    assert list(settings.corpora_dir.iterdir()) == [corpus.folder]  # what the killed build left is removed
    asked = [row.messages[0]["content"] for row in corpus.rows(range(len(corpus)))]
    assert len(set(asked)) == len(asked) == ROWS - 5


def test_a_damaged_corpus_says_so(tmp_path, processor_dir, ray_cluster):
    """A missing shard is noticed on opening, one with broken bytes on reading; both errors say what to do."""
    settings = config(tmp_path, write_words(tmp_path, 40))
    corpus = build_corpus(settings, processor_dir)
    shard = corpus.folder / "shard-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"shard-00001.parquet is damaged; delete the corpus, and"):
        corpus.rows([12])
    shard.unlink()
    with pytest.raises(UserError, match=r"shard-00001.parquet is missing; delete the corpus, and"):
        build_corpus(settings, processor_dir)


@pytest.mark.parametrize("kind", ["parquet", "json", "tar"])
def test_a_damaged_file_is_named(tmp_path, processor_dir, ray_cluster, kind):
    """A data file that cannot be read at all ends the build with its name, without a remote traceback."""
    path = tmp_path / f"data.{kind}"
    if kind == "tar":
        (tmp_path / "1.png").write_bytes(picture(size=(200, 200)))
        with tarfile.open(path, "w") as tar:
            tar.add(tmp_path / "1.png", "1.png")
        path.write_bytes(path.read_bytes()[:5000])
    else:
        path.write_bytes(b"[{]")
    format = "webdataset" if kind == "tar" else "prompt_completion"
    with pytest.raises(UserError, match=rf"^source words: .*data.{kind} cannot be read: ") as error:
        build_corpus(config(tmp_path, path, format), processor_dir)
    assert "Traceback" not in str(error.value)


def test_unknown_source(tmp_path, processor_dir, ray_cluster):
    """A path at which there is nothing ends the build before any work, naming source and path."""
    with pytest.raises(UserError, match=r"source words: no such file or folder: .*gone.jsonl"):
        build_corpus(config(tmp_path, tmp_path / "gone.jsonl"), processor_dir)
