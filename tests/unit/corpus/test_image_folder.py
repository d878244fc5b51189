"""Rows that others may have made bring no file of this machine into a corpus or an evaluation."""

import base64

import datasets
import huggingface_hub
import pytest
from tiny import picture

from lingu_ray import storage
from lingu_ray.config import SourceConfig, TaskConfig
from lingu_ray.corpus.image_folder import image_folder
from lingu_ray.corpus.load_image import image_path, load_image
from lingu_ray.corpus.readers import FileSplit
from lingu_ray.corpus.record import BadRecord
from lingu_ray.evaluation.tasks.images import item_images
from lingu_ray.evaluation.tasks.rows import Place

PNG = picture(1)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home with a private picture, a cache of the hub, and a folder of pictures that was linked there."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(storage.CACHE, str(tmp_path / "node"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", tmp_path / "datasets/downloads")
    snapshot = tmp_path / "hub/datasets--owner--data/snapshots/abc"
    for name in ("private.png", "hub/datasets--owner--other/1.png", "datasets/downloads/extracted/1/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(PNG)
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "blobs").mkdir()
    (snapshot.parents[1] / "blobs/1").write_bytes(PNG)
    (snapshot / "1.png").symlink_to("../../blobs/1")
    (tmp_path / "disk/coco").mkdir(parents=True)
    (tmp_path / "disk/coco/1.png").write_bytes(PNG)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/coco").symlink_to(tmp_path / "disk/coco")
    return tmp_path


def folder_of(path, records, **settings):
    source = SourceConfig(name="s", format="llava", path=str(path), **settings)
    return image_folder(source, FileSplit("arrow", str(records)))


FOREIGN = ["{home}/private.png", "file://{home}/private.png", "~/private.png", "../private.png"]


@pytest.mark.parametrize("reference", [*FOREIGN, "{home}/hub/datasets--owner--other/1.png", "../../disk/coco/1.png"])
@pytest.mark.parametrize("root", [None, "pictures"])
def test_rows_of_the_hub_name_no_file_elsewhere(home, reference, root):
    """Neither by any spelling nor beside `image_root`; the fingerprint does not read it either."""
    reference = reference.replace("{home}", str(home))
    settings = {} if root is None else {"image_root": str(home / root)}
    folder = folder_of("owner/data", home / "datasets/data-train.arrow", **settings)
    with pytest.raises(BadRecord, match="may not name files of this machine: set `image_root`") as caught:
        load_image(reference, folder)
    assert caught.value.reason == "missing_image"
    assert image_path(reference, folder) is None


@pytest.mark.parametrize(
    "reference",
    [
        "{home}/hub/datasets--owner--data/snapshots/abc/1.png",
        "{home}/datasets/downloads/extracted/1/1.png",
        "coco/1.png",
        "{home}/pictures/coco/1.png",
        PNG,
        base64.b64encode(PNG).decode(),
        f"data:image/png;base64,{base64.b64encode(PNG).decode()}",
    ],
    ids=lambda reference: str(reference)[:40],
)
def test_rows_of_the_hub_have_their_own_pictures(home, reference):
    """Those of the dataset, also out of an archive, those below `image_root`, and what has no path."""
    folder = folder_of("owner/data", home / "datasets/data-train.arrow", image_root=str(home / "pictures"))
    if isinstance(reference, str):
        reference = reference.replace("{home}", str(home))
    assert load_image(reference, folder) == PNG


def test_base64_that_begins_as_an_absolute_path_is_no_file(home):
    """As that of every JPEG does."""
    jpeg = picture(1, encoding="JPEG")
    text = base64.b64encode(jpeg).decode()
    assert text.startswith("/9j/")
    assert load_image(text, folder_of("owner/data", home / "datasets/data-train.arrow")) == jpeg


@pytest.mark.parametrize("reference", FOREIGN[:2])
def test_rows_of_a_bucket_name_no_file_of_this_machine(home, reference):
    """But those of `image_root`, where it is a folder here."""
    reference = reference.replace("{home}", str(home))
    with pytest.raises(BadRecord, match="may not name files of this machine"):
        load_image(reference, folder_of("s3://bucket/rows.jsonl", "s3://bucket/rows.jsonl"))
    folder = folder_of("s3://bucket/rows.jsonl", "s3://bucket/rows.jsonl", image_root=str(home))
    assert load_image(reference, folder) == PNG


@pytest.mark.parametrize("reference", FOREIGN)
def test_local_rows_name_any_file(home, reference):
    """LLaVA's files have absolute paths, and rows may lie in a folder beside that of their pictures."""
    (home / "rows").mkdir()
    folder = folder_of(home / "rows/rows.jsonl", home / "rows/rows.jsonl")
    assert load_image(reference.replace("{home}", str(home)), folder) == PNG


def test_items_of_a_task_are_as_rows_of_a_source(home):
    """They come from the hub as well."""
    task = {"name": "t", "kind": "vision", "type": "vqa_accuracy", "path": "owner/data", "split": "test"}
    place = Place(FileSplit("arrow", f"{home}/datasets/data-test.arrow"), 1)
    with pytest.raises(BadRecord, match="may not name files of this machine"):
        item_images(TaskConfig.model_validate(task), place, 0, {"image": f"{home}/private.png"})
