"""An image is found by whatever a record refers to it by, or the row is told what is wrong with the reference."""

import base64
import errno
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import picture

from lingu_ray.corpus import named_file
from lingu_ray.corpus.image_folder import ImageFolder
from lingu_ray.corpus.images import decode_image
from lingu_ray.corpus.load_image import image_path, load_image
from lingu_ray.corpus.record import BadRecord
from lingu_ray.errors import UserError

PNG = picture(1)
BASE64 = base64.b64encode(PNG).decode()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of images, in the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    inner = tmp_path / "data set"
    inner.mkdir()
    for path in (tmp_path / "up.png", inner / "a.png", inner / "50% off #1?.png", inner / "{x}.png"):
        path.write_bytes(PNG)
    (inner / "link.png").symlink_to(tmp_path / "up.png")
    return inner


@pytest.mark.parametrize(
    "reference",
    [
        PNG,
        bytearray(PNG),
        memoryview(PNG),
        "a.png",
        Path("a.png"),
        "../up.png",
        "link.png",
        "{folder}/a.png",
        "~/up.png",
        "50% off #1?.png",
        "file://{url}/a.png",
        "FILE://localhost{url}/a.png",
        "file:{url}/a.png",
        "file://{url}/50%25%20off%20%231%3F.png",
        f"data:image/png;base64,{BASE64}",
        f"DATA:;base64,{BASE64.rstrip('=')}",
        f"data:image/png;charset=utf-8;base64,{BASE64.replace('+', '%2B')}",
        "data:image/png," + "".join(f"%{byte:02x}" for byte in PNG),
        BASE64,
        base64.encodebytes(PNG).decode(),
        base64.urlsafe_b64encode(PNG).decode().rstrip("="),
        {"bytes": PNG, "path": None},
        {"bytes": PNG, "path": "gone.png"},
        {"bytes": None, "path": "a.png"},
        {"path": "a.png"},
        {"url": "file://{url}/a.png"},
        {"url": f"data:image/png;base64,{BASE64}", "detail": "low"},
        {"bytes": BASE64},
    ],
    ids=lambda reference: type(reference).__name__,
)
def test_every_reference_to_an_image_is_understood(folder, reference):
    """Bytes, paths, links, URLs of files and data, base64, and objects with one of these: all the same image."""
    if isinstance(reference, str):
        reference = reference.replace("{folder}", str(folder)).replace("{url}", str(folder).replace(" ", "%20"))
    if isinstance(reference, dict) and "{url}" in str(reference.get("url")):
        reference = {"url": reference["url"].replace("{url}", str(folder).replace(" ", "%20"))}
    assert load_image(reference, ImageFolder(folder)) == PNG


@pytest.mark.parametrize(("format", "padding"), [("JPEG", True), ("WEBP", False)])
def test_a_picture_whose_end_is_zeros_is_broken(format, padding):
    """Decoders take them for gray; zeros behind the end of a JPEG are padding."""
    file = io.BytesIO()
    noise_HWC = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    Image.fromarray(noise_HWC).save(file, format, quality=90)
    whole = file.getvalue()
    half = whole[: len(whole) // 2]
    decode_image(half + bytes(len(half)))  # else the check would not be needed
    with pytest.raises(BadRecord, match="its end is zeros, as of a copy or download that was interrupted"):
        load_image(half + bytes(len(half)), ImageFolder(""))
    padded = whole + bytes(4096) if padding else whole
    assert load_image(padded, ImageFolder("")) == padded


@pytest.mark.parametrize(
    ("reference", "reason", "detail"),
    [
        (None, "missing_image", "empty"),
        ("", "missing_image", "empty"),
        (b"", "missing_image", "empty"),
        ({}, "missing_image", "empty"),
        ({"bytes": None, "path": None}, "missing_image", "empty"),
        ({"bytes": b"", "path": ""}, "missing_image", "empty"),
        ("gone.png", "missing_image", "gone.png: No such file"),
        ("241", "missing_image", "241: No such file or directory; a number may be the `index` of the row"),
        ("empty.png", "missing_image", "empty"),
        (".", "missing_image", "is a folder"),
        ("/dev/zero", "missing_image", "is no file"),
        ("pipe", "missing_image", "is no file"),
        ("dangling", "missing_image", "No such file"),
        ("a" * 5000, "missing_image", "name too long"),
        ("a\0.png", "missing_image", "embedded null"),
        ("~nobody-of-that-name/a.png", "missing_image", "No such file"),
        ("http://host/a.png", "remote_image", "not downloaded during a build"),
        ("HTTPS://host/a.png", "remote_image", "img2dataset"),
        ({"url": "s3://bucket/a.png"}, "remote_image", "not downloaded"),
        ("zip://a.png::images.zip", "remote_image", "nor taken from archives"),
        ("file://host/a.png", "remote_image", "names the host 'host'"),
        ("file:a.png", "wrong_type", "no absolute path"),
        ({"file": "a.png"}, "wrong_type", "this one has file"),
        (7, "wrong_type", "not int"),
        (["a.png"], "wrong_type", "not list"),
        ("data:image/png;base64", "bad_image", "comma"),
        ("data:image/png;base64,§", "bad_image", "not base64"),
        (f"data:image/png;base64,{BASE64[:100]}", "bad_image", ""),
        (BASE64[:100], "bad_image", ""),
        (PNG[:60], "bad_image", ""),
        ("text.png", "bad_image", "cannot identify"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_reference_that_leads_to_no_image_says_why(folder, reference, reason, detail):
    """Each is a bad record with its own reason: nothing is waited for, downloaded or taken for another image."""
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("no image")
    (folder / "dangling").symlink_to(folder / "gone")
    os.mkfifo(folder / "pipe")
    with pytest.raises(BadRecord) as caught:
        load_image(reference, ImageFolder(folder))
    assert caught.value.reason == reason
    assert detail in caught.value.detail and len(caught.value.detail) < 400


def failing(number: int, times: int) -> Any:
    """Reading of files that fails so many times before it succeeds."""
    left = [OSError(number, os.strerror(number))] * times
    return lambda path: (_ for _ in ()).throw(left.pop()) if left else PNG


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE])
def test_a_file_system_that_fails_is_asked_again(folder, monkeypatch, number):
    """What it gives in the end is taken; an error that stays is not the row's, and names the file."""
    monkeypatch.setattr(named_file, "WAITS_S", (0.0, 0.0))
    monkeypatch.setattr(Path, "read_bytes", failing(number, times=2))
    assert load_image("a.png", ImageFolder(folder)) == PNG
    monkeypatch.setattr(Path, "read_bytes", failing(number, times=3))
    with pytest.raises(UserError, match=rf"a.png: the file system does not give it \({os.strerror(number)}\)"):
        load_image("a.png", ImageFolder(folder))


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.ENOENT, errno.ELOOP])
def test_what_further_attempts_cannot_change_is_the_rows(folder, monkeypatch, number):
    """A file that may not be read, or that is gone, is missing at once."""
    monkeypatch.setattr(Path, "read_bytes", failing(number, times=1))
    with pytest.raises(BadRecord, match=os.strerror(number)) as caught:
        load_image("a.png", ImageFolder(folder))
    assert caught.value.reason == "missing_image"


def test_the_file_behind_a_reference(folder):
    """The fingerprint of a corpus reads files that records name, whatever the spelling; other references have none."""
    for reference in ("a.png", {"bytes": None, "path": "a.png"}, f"file://{folder}/a.png", "~/data set/a.png"):
        assert image_path(reference, ImageFolder(folder)) == folder / "a.png"
    for reference in (None, PNG, {"bytes": PNG, "path": "a.png"}, f"data:image/png;base64,{BASE64}", 7):
        assert image_path(reference, ImageFolder(folder)) is None
