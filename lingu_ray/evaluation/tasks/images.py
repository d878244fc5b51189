"""Images of items: checked when the task is loaded, read again when they are needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lingu_ray.config import TaskConfig
from lingu_ray.content import bytes_identity
from lingu_ray.corpus.image_folder import ImageFolder, image_folder
from lingu_ray.corpus.images import pixels_identity
from lingu_ray.corpus.load_image import load_and_decode, read_image
from lingu_ray.evaluation.tasks.fields import fields_of
from lingu_ray.evaluation.tasks.rows import Place, source_of
from lingu_ray.evaluation.tasks.task_types import Fields
from lingu_ray.literals import parsed


@dataclass(frozen=True)
class RowImage:
    """The image at `index` of the item that is number `turn` of a row. See `task.ItemImage`."""

    config: TaskConfig
    place: Place
    folder: ImageFolder
    turn: int
    index: int
    content: str
    pixels: str

    def __call__(self) -> bytes:
        fields = fields_of(self.config, self.place.read())[self.turn]
        return read_image(references(fields)[self.index], self.folder)


def item_images(config: TaskConfig, place: Place, turn: int, fields: Fields) -> tuple[RowImage, ...]:
    """The images that an item's `image` refers to, each decoded once; relative paths start from the file's folder.

    Raises:
        BadRecord: one is missing or broken.
    """
    folder = image_folder(source_of(config), place.split)
    loaded = (load_and_decode(reference, folder) for reference in references(fields))
    return tuple(
        RowImage(config, place, folder, turn, i, bytes_identity(encoded), pixels_identity(decoded))
        for i, (encoded, decoded) in enumerate(loaded)
    )


def references(fields: Fields) -> list[Any]:
    """What an item's `image` says: paths, bytes, or cells `{"bytes", "path"}` of `datasets`; one or a list.

    Tables hold a list as text.
    """
    image = parsed(fields.get("image"))
    return image if isinstance(image, list) else [] if image is None else [image]
