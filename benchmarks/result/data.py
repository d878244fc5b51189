"""Prepare the data of the experiment: training sources, evaluation tasks, and the proof that they share nothing.

python -m benchmarks.result.data DATA OUT
python -m benchmarks.result.data DATA runs/result/data easy_vqa=models/.download/easy_vqa/data

DATA        a folder with the public sets; benchmarks/result/README.md says what lies where, and where to get it
OUT         a new folder: train/SOURCE.jsonl, validation/TASK.jsonl, evaluation/TASK.jsonl, sight/SOURCE.jsonl, the
            pictures that they name, and manifest.json: counts, hashes, licenses, and what the splits share (nothing)

Splits are made by picture and by document, so nearly equal pictures, and all questions about one, are in one split.
`sight` has sentences about the evaluation's pictures, of the kind that training has about its own pictures.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import Field
from tqdm import tqdm

from benchmarks.result.groups import EVALUATION, TRAIN, assign
from benchmarks.result.manifest import SIGHT, write_manifest
from benchmarks.result.picture_sets import PICTURE_SETS, SENTENCES, Ask, Shown
from benchmarks.result.pictures import Picture, group_near, read_picture
from benchmarks.result.text_sets import Row, read_texts
from lingu_ray.atomic import require_new_folder, whole_folder, write_text
from lingu_ray.config import Section
from lingu_ray.config.command_line import names_and_settings
from lingu_ray.config.help_pages import Help
from lingu_ray.errors import UserError, run_command
from lingu_ray.paths import LocalPath, absolute

FOLDERS = {"clothing": "images/clothing", "grocery": "images/grocery_store", "puzzles": "images/puzzlevqa"}
"""Folders of the picture sets in DATA, without easy-VQA, which comes from its Python package."""


Files = dict[str, dict[str, list[Row]]]
"""Rows by folder (a split, or `sight`), then by source or task."""


class DataConfig(Section):
    """Settings of the command."""

    easy_vqa: LocalPath | None = Field(None, description="folder `data` of the package easy-vqa; null: DATA/easy_vqa")
    seed: int = Field(0, description="seed of splits, orders and wordings")


HELP = Help("python -m benchmarks.result.data DATA OUT [key=value ...]", __doc__, DataConfig)


def main(arguments: list[str]) -> None:
    """Prepare the data, and print how much there is."""
    names, options = names_and_settings(arguments, HELP)
    if len(names) != 2:
        raise UserError(f"name the folder of the data and a new one\nusage: {HELP.usage}")
    data, out = map(absolute, names)
    counts = prepare(data, out, options)["counts"]
    for split, of_split in counts.items():
        print(f"{split:12}", ", ".join(f"{name} {count:,}" for name, count in of_split.items()))
    print(f"data     {out}")


def prepare(data: Path, out: Path, options: DataConfig) -> dict[str, Any]:
    """Write the prepared data into a new folder; returns its manifest.

    Raises:
        UserError: the folder exists, a set is missing, a picture is broken, or splits share something.
    """
    require_new_folder(out)
    folders = {name: data / place for name, place in FOLDERS.items()}
    folders["easy_vqa"] = options.easy_vqa or data / "easy_vqa"
    texts = read_texts(data, options.seed)
    rows: Files = {**texts.rows, SIGHT: {}}
    left_out = {"t0": texts.left_out}
    with whole_folder(out) as building:
        for name, folder in sorted(folders.items()):
            left_out[name] = _add_pictures(rows, name, folder, building, options.seed)
        for part, of_part in rows.items():
            for name, of_name in of_part.items():
                lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in of_name)
                write_text(building / part / f"{name}.jsonl", "".join(lines))
        return write_manifest(building, options.seed, left_out, texts.template)


def _add_pictures(rows: Files, name: str, folder: Path, building: Path, seed: int) -> Counter[str]:
    """Split a picture set, copy its pictures, and add its rows to each split; returns what was left out, by reason."""
    source = PICTURE_SETS[name]
    shown = list(source.read(folder, seed))
    pictures = [read_picture(one.path) for one in tqdm(shown, name, unit="picture", leave=False, disable=None)]
    held_out = {place for place, one in enumerate(shown) if one.held_out}
    keys = [picture.pixels for picture in pictures]
    split = assign(keys, group_near(pictures), held_out, source.shares, seed)
    (building / "images" / name).mkdir(parents=True)
    for part, members in split.members.items():
        for place in sorted(members, key=lambda place: keys[place]):  # an order that mixes the classes
            image = _copied(pictures[place], building / "images" / name)
            _add_rows(rows, part, shown[place], f"../images/{name}/{image}")
    return split.dropped


def _copied(picture: Picture, folder: Path) -> str:
    """Copy a picture file as it is, named by its pixels; returns the name."""
    name = f"{picture.pixels}{picture.path.suffix.lower()}"
    shutil.copyfile(picture.path, folder / name)
    return name


def _add_rows(rows: Files, split: str, shown: Shown, image: str) -> None:
    """Add a picture's rows to a split: training rows, or test questions and sentences for `sight`."""
    taught = [(ask, {"prompt": ask.question, "completion": ask.answer}) for ask in shown.teaches]
    if split == TRAIN:
        _add(rows[TRAIN], taught, image)
        return
    _add(rows[split], [(ask, {"question": ask.question, "answer": ask.answer}) for ask in shown.tests], image)
    if split == EVALUATION:
        _add(rows[SIGHT], [(ask, row) for ask, row in taught if ask.of == SENTENCES], image)


def _add(files: dict[str, list[Row]], asked: Iterable[tuple[Ask, Row]], image: str) -> None:
    for ask, row in asked:
        files.setdefault(ask.of, []).append({**row, "image": image})


if __name__ == "__main__":
    run_command(main)
