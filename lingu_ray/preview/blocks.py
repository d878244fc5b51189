"""Images in a terminal: two pixels a character, one above the other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.style import Style
from rich.text import Text

from lingu_ray.corpus.images import decode_image

_SIZE = (28, 20)  # largest, pixels: columns, and twice the lines
_UPPER_HALF = "▀"


def blocks(encoded: bytes) -> Text:
    """A small picture of an image; needs a terminal of many colors."""
    image = decode_image(encoded)
    image.thumbnail(_SIZE, Image.Resampling.LANCZOS)
    pixels_HWC = np.asarray(image)
    lines = []
    for y in range(0, image.height, 2):
        both = zip(pixels_HWC[y], pixels_HWC[min(y + 1, image.height - 1)], strict=True)
        styles = [Style(color=_color(upper), bgcolor=_color(lower)) for upper, lower in both]
        lines.append(Text.assemble(*((_UPPER_HALF, style) for style in styles)))
    return Text("\n").join(lines)


def _color(rgb: NDArray[np.uint8]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*rgb)
