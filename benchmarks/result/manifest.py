"""The manifest of the prepared data: counts, hashes, licenses, and the proof that the splits share nothing."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.result.files import read_json_lines
from benchmarks.result.groups import EVALUATION, SPLITS, TRAIN, VALIDATION, Split
from benchmarks.result.picture_sets import PICTURE_SETS
from benchmarks.result.pictures import pixel_hash
from benchmarks.result.text_sets import LICENSES, texts_of
from benchmarks.result.texts import quoted_in, shown
from lingu_ray.atomic import write_json
from lingu_ray.corpus.images import decode_image
from lingu_ray.errors import UserError

FILE = "manifest.json"
SIGHT = "sight"  # a folder of further rows about the evaluation's pictures, with words that training has of others
FOLDERS = (*SPLITS, SIGHT)


def write_manifest(folder: Path, seed: int, left_out: Mapping[str, Counter[str]], template: set[int]) -> dict[str, Any]:
    """Write the manifest of the data in `folder`, from its files.

    Args:
        folder: the prepared data.
        seed: seed of the splits.
        left_out: number of records of each set that are in no split, by reason.
        template: runs of words that prompts share because of a template, not because they quote a document.

    Raises:
        UserError: a picture or a text is in two splits.
    """
    manifest = {
        "seed": seed,
        "counts": {part: {file.stem: len(read_json_lines(file)) for file in _files(folder, part)} for part in FOLDERS},
        "left_out": {name: dict(sorted(reasons.items())) for name, reasons in sorted(left_out.items())},
        "apart": {"pictures": prove_pictures(folder), "texts": prove_texts(folder, template)},
        "licenses": _licenses(),
        "sha256": {
            str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
            for part in FOLDERS
            for file in _files(folder, part)
        },
    }
    write_json(folder / FILE, manifest)
    return manifest


def prove_pictures(folder: Path) -> dict[str, Any]:
    """The number of different pictures of each split, by their pixels; `sight` has the evaluation's pictures.

    Raises:
        UserError: one is in two splits; the message names both files.
    """
    owner: dict[str, tuple[Split, str]] = {}
    counts = Counter[str]()
    for split in SPLITS:
        files = [*_files(folder, split), *(_files(folder, SIGHT) if split == EVALUATION else [])]
        images = {row["image"] for file in files for row in read_json_lines(file) if "image" in row}
        for image in sorted(images):
            pixels = pixel_hash(decode_image((folder / split / image).read_bytes()))
            other, name = owner.setdefault(pixels, (split, image))
            if other != split:
                raise UserError(f"{folder}: {image} of {split} is {name} of {other}: one picture in two splits")
        counts[split] = len(images)
    return {**counts, "shared": 0}


def prove_texts(folder: Path, template: set[int]) -> dict[str, Any]:
    """The number of different runs of words in each split's texts, without templates'; training shares none of them.

    Raises:
        UserError: a training text quotes a held-out one, or training has a fifth of a held-out text's runs of words,
            templates' included; the message names the file and the row.
    """
    held_out = {split: quoted_in(_texts(folder, split), template) for split in (VALIDATION, EVALUATION)}
    protected = held_out[VALIDATION] | held_out[EVALUATION]
    for file in _files(folder, TRAIN):
        for number, row in enumerate(read_json_lines(file), 1):
            if quoted_in(texts_of(row), template) & protected:
                raise UserError(f"{file}:{number}: quotes a held-out text")
    known = quoted_in(_texts(folder, TRAIN), set())
    for file in (file for split in (VALIDATION, EVALUATION) for file in _files(folder, split)):
        for number, row in enumerate(read_json_lines(file), 1):
            if any(shown(text, known) for text in texts_of(row)):
                raise UserError(f"{file}:{number}: is shown in training")
    counts = {TRAIN: len(quoted_in(_texts(folder, TRAIN), template)), **{s: len(q) for s, q in held_out.items()}}
    return {**counts, "shared": 0}


def _texts(folder: Path, split: Split) -> Iterator[str]:
    return (text for file in _files(folder, split) for row in read_json_lines(file) for text in texts_of(row))


def _files(folder: Path, part: str) -> list[Path]:
    return sorted((folder / part).glob("*.jsonl"))


def _licenses() -> dict[str, dict[str, str]]:
    sets = {name: (one.license, one.origin) for name, one in PICTURE_SETS.items()} | LICENSES
    return {name: {"license": license, "origin": origin} for name, (license, origin) in sorted(sets.items())}
