"""Decoding images, in the same way for build, training and evaluation."""

from __future__ import annotations

import io

from PIL import ExifTags, Image, ImageOps


def decode_image(encoded: bytes) -> Image.Image:
    """Decode to RGB: upright by its EXIF orientation, transparency on white (as vLLM and the hub's demos show it).

    Raises what PIL raises (`OSError`, `ValueError`, `SyntaxError`, `Image.DecompressionBombError`, …) if it is broken.
    """
    image = Image.open(io.BytesIO(encoded))
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def image_size(encoded: bytes) -> tuple[int, int]:
    """Width and height of what `decode_image` returns, read from the header alone."""
    with Image.open(io.BytesIO(encoded)) as image:
        width, height = image.size
        lies_on_its_side = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    return (height, width) if lies_on_its_side else (width, height)
