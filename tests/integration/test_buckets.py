"""Sources, corpus and models in a bucket of a real S3 server: what is made of them is what local files make."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from buckets import SECRET
from safetensors.torch import load_file
from tinyrun import config, settings
from transformers import AutoModel, AutoModelForImageTextToText, BitImageProcessorPil, Dinov2Config

from lingu_ray import inspect, storage
from lingu_ray.config import Config
from lingu_ray.content import model_identity
from lingu_ray.corpus.build import build_corpus
from lingu_ray.errors import UserError
from lingu_ray.evaluation.engines.load import check_weights as check_folder
from lingu_ray.evaluation.engines.load import load_model_files, takes_images
from lingu_ray.runtime import trainer
from lingu_ray.runtime.models.check import check_pair, check_weights
from lingu_ray.runtime.models.load import load_student, load_teacher_tokenizer
from lingu_ray.runtime.preparation import check_output, prepare_initial_model
from lingu_ray.runtime.run_folder.folder import RunFolder
from lingu_ray.storage import connection

pytestmark = pytest.mark.slow


def upload(folder: Path, location: str) -> None:
    """Put all files of a folder."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            storage.put(path, f"{location}/{path.relative_to(folder)}")


def in_bucket(data: Path, bucket: str, output_dir: Path, **overrides: object):
    """The tiny run with its models, sources and corpora in the bucket."""
    tree = settings(data, output_dir, **overrides)
    tree = json.loads(json.dumps(tree).replace(str(data), bucket))
    tree["corpus"]["cache_dir"] = f"{bucket}/corpora"
    return tree


def test_a_corpus_in_a_bucket_is_the_local_one(bucket, data, tmp_path, ray_cluster, caplog):
    """Built there of sources there it has the local one's bytes, is found again, and without manifest built again."""
    upload(data, bucket)
    small = {**settings(data, tmp_path)["corpus"], "rows_per_shard": 20}
    local = build_corpus(config(data, tmp_path / "local", corpus=small), data / "student")
    run = Config.model_validate(in_bucket(data, bucket, tmp_path, corpus=small))
    corpus = build_corpus(run, data / "student")
    assert isinstance(local.folder, Path) and isinstance(corpus.folder, str)
    assert corpus.folder.startswith(f"{bucket}/corpora/")
    names = {entry.name for entry in storage.entries(corpus.folder)}
    assert names == {str(p.relative_to(local.folder)) for p in local.folder.rglob("*") if p.is_file()}
    shards = sorted(name for name in names if "/" not in name and name.endswith(".parquet"))
    assert len(shards) > 3
    for name in shards:
        assert storage.read_bytes(f"{corpus.folder}/{name}") == (local.folder / name).read_bytes(), name
    assert (
        corpus.rows(range(len(corpus))) == local.rows(range(len(local))) and corpus.validation() == local.validation()
    )
    assert {**corpus.manifest, "fingerprint": ""} == {**local.manifest, "fingerprint": ""}
    with caplog.at_level("INFO"):
        assert build_corpus(run, data / "student").folder == corpus.folder
    assert "found, built before" in caplog.text

    storage.delete(f"{corpus.folder}/manifest.json")
    assert build_corpus(run, data / "student").rows([0]) == local.rows([0])


def test_a_run_with_everything_but_its_output_in_a_bucket(bucket, data, tmp_path, ray_cluster):
    """Two workers with their teachers train on models, sources and corpus from there, and export a whole model."""
    upload(data, bucket)
    short = {"train": {"steps": 2, "validate_every": 2, "sample_every": 2, "checkpoint_every": 2}}
    run = Config.model_validate(in_bucket(data, bucket, tmp_path, ray={"num_workers": 2}, **short))
    trainer.run(run)
    AutoModelForImageTextToText.from_pretrained(run.run_dir / "export")
    assert f"{bucket}/student" in (run.run_dir / "config.yaml").read_text()
    pointer = json.loads((run.run_dir / "corpus.json").read_text())
    assert pointer["path"].startswith(f"{bucket}/corpora/")
    written = "".join(path.read_text() for path in run.run_dir.glob("*.json*"))
    assert SECRET not in written


def test_a_tower_in_a_bucket_makes_the_student_that_the_local_one_makes(bucket, data, tmp_path):
    """Weights and image processing of a new VLM are those of the tower, wherever it lies."""
    tower = tmp_path / "tower"
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    AutoModel.from_config(Dinov2Config(**sizes, mlp_ratio=2)).save_pretrained(tower)
    BitImageProcessorPil(image_mean=[0.4, 0.5, 0.6]).save_pretrained(tower)
    upload(tower, f"{bucket}/tower")
    made = {}
    for name, place in {"local": str(tower), "bucket": f"{bucket}/tower"}.items():
        student = {"path": None, "from_teacher": {"tower": place}}
        run = config(data, tmp_path / name, student=student, distill={"policy": "none"})
        folder = RunFolder(run.run_dir)
        prepare_initial_model(run, folder)
        made[name] = folder.initial_model
    weights = [load_file(model / "model.safetensors") for model in made.values()]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    texts = [(model / "processor_config.json").read_text() for model in made.values()]
    assert texts[0] == texts[1] and "0.4" in texts[0]


def test_models_and_data_in_a_bucket_are_looked_at(bucket, data, tmp_path, capsys, monkeypatch):
    """Pair and weights are checked and loaded from the node's copy, with the local identity; inspect shows the rows."""
    upload(data, bucket)
    tree = in_bucket(data, bucket, tmp_path)
    run = Config.model_validate(tree)
    check_pair(run)
    check_weights(run)
    student, teacher = f"{bucket}/student", f"{bucket}/teacher"
    assert model_identity(storage.local_copy(student)) == model_identity(str(data / "student"))
    assert sum(p.numel() for p in load_student(run.student).parameters()) > 0
    assert len(load_teacher_tokenizer(run.teacher)) > 0
    assert takes_images(Path(student)) and not takes_images(teacher)
    check_folder(Path(student))
    assert Path(load_model_files(Path(student)).path).is_dir()
    weights = next(entry for entry in storage.entries(teacher) if entry.name.endswith(".safetensors"))
    storage.put((data / "teacher" / weights.name).read_bytes()[:-4], f"{teacher}/{weights.name}")
    with pytest.raises(UserError, match=f"teacher.path={teacher}: .*cut off"):
        check_weights(run)
    empty = run.model_copy(update={"teacher": run.teacher.model_copy(update={"path": f"{bucket}/none"})})
    with pytest.raises(UserError, match=f"{bucket}/none: there is nothing at this location"):
        check_pair(empty)

    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))
    page = tmp_path / "page.html"
    inspect.main([str(tmp_path / "run.yaml"), f"out={page}", "rows=1", "read=10"])
    assert f"{bucket}/text.jsonl:" in capsys.readouterr().out and page.exists()


def test_what_is_wrong_with_a_bucket_is_told_at_the_start(bucket, data, tmp_path, monkeypatch):
    """No such bucket, or one that may not be written: before anything is loaded, with the setting's value."""
    tree = settings(data, tmp_path)
    for place, problem in (
        ("s3://no-such-bucket/corpora", "no such bucket"),
        (f"{bucket}/corpora", "access is refused"),
    ):
        tree["corpus"]["cache_dir"] = place
        if problem == "access is refused":
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
            connection.file_system.cache_clear()
        with pytest.raises(UserError, match=f"{place}.*{problem}"):
            check_output(Config.model_validate(tree))
    connection.file_system.cache_clear()
