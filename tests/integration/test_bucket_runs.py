"""Runs whose results go to a bucket, on a real S3 server: trained, killed, resumed, evaluated, swept."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load
from tinyrun import config

from lingu_ray import storage
from lingu_ray.config import Config
from lingu_ray.runtime import trainer

pytestmark = pytest.mark.slow

KNOWN = ("step", "loss", "ce", "kd", "grad_norm", "validation_ce")


def in_bucket(data: Path, bucket: str, tmp_path: Path, **overrides: object) -> Config:
    """The tiny run with its results in the bucket, and MLflow's database on a disk."""
    tracking = {"uri": f"sqlite:///{tmp_path}/mlflow.db"}
    return config(data, bucket, tracking=tracking, **overrides)


def read(location: str) -> bytes:
    """An object's content, of a local file, too."""
    return storage.read_bytes(location) if storage.is_remote(location) else Path(location).read_bytes()


def outcome(run: Config):
    """The exported weights, and what is known of each step, but how long it took."""
    place = str(run.run_place)
    lines = read(f"{place}/metrics.jsonl").decode().splitlines()
    records = [tuple(json.loads(line).get(key) for key in KNOWN) for line in lines]
    return load(read(f"{place}/export/model.safetensors")), records


def test_a_run_in_a_bucket_is_the_local_one(bucket, data, tmp_path, ray_cluster):
    """Two workers, whose node shares no folder with the driver, leave there what a local run leaves in its folder."""
    local = config(data, tmp_path / "runs", ray={"num_workers": 2})
    trainer.run(local)
    run = in_bucket(data, bucket, tmp_path, ray={"num_workers": 2})
    assert trainer.run(run) == f"{bucket}/tiny/export"
    (ours, records), (theirs, expected) = outcome(run), outcome(local)
    assert records == expected and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    names = {entry.name for entry in storage.entries(str(run.run_place))}
    files = {str(path.relative_to(local.run_dir)) for path in local.run_dir.rglob("*") if path.is_file()}
    assert names == {name for name in files if not name.startswith(".ray/")}
    assert not run.run_dir.exists()
