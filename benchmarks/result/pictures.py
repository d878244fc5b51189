"""Pictures by their pixels: hashes of equal ones, and groups of nearly equal ones.

Shape suffixes: N pictures, F numbers of a thumbnail.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.result.groups import Groups
from lingu_ray.corpus.images import decode_image
from lingu_ray.errors import UserError

SIDE = 32
NEAR = 0.02
"""Pictures count as equal below this root mean square difference of their thumbnails, as a share of the color range."""
BLOCK = 512


@dataclass(frozen=True)
class Picture:
    """A picture file, the hash of its pixels, and its thumbnail (colors from 0 to 1)."""

    path: Path
    pixels: str
    thumbnail_F: NDArray[np.float32]


def read_picture(path: Path) -> Picture:
    """Read a picture as the corpus does.

    Raises:
        UserError: it is missing or broken.
    """
    try:
        image = decode_image(path.read_bytes())
    except Exception as error:  # PIL raises many kinds for broken files
        raise UserError(f"{path}: no picture: {type(error).__name__}: {error}") from error
    small = image.resize((SIDE, SIDE), Image.Resampling.BOX)
    return Picture(path, pixel_hash(image), np.asarray(small, np.float32).ravel() / 255)


def pixel_hash(image: Image.Image) -> str:
    """A hash of a picture's size and colors, independent of the file's format."""
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()[:32]


def group_near(pictures: Sequence[Picture]) -> Groups:
    """Group the pictures that are nearly equal."""
    groups = Groups(len(pictures))
    if pictures:
        thumbnails_NF = np.stack([picture.thumbnail_F for picture in pictures])
        for one, other in _near_pairs(thumbnails_NF):
            groups.join(one, other)
    return groups


def _near_pairs(thumbnails_NF: NDArray[np.float32]) -> Iterator[tuple[int, int]]:
    square_N = (thumbnails_NF**2).sum(1)
    limit = NEAR**2 * thumbnails_NF.shape[1]
    for begin in range(0, len(thumbnails_NF), BLOCK):
        rows = slice(begin, begin + BLOCK)
        distance = square_N[rows, None] + square_N[None] - 2 * thumbnails_NF[rows] @ thumbnails_NF.T
        for one, other in np.argwhere(distance < limit):
            if begin + one < other:
                yield begin + int(one), int(other)
