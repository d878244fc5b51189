"""Decoding images, in the same way for build, training and evaluation."""

from __future__ import annotations

import io
from collections.abc import Container

import numpy as np
from PIL import ExifTags, Image, ImageCms
from PIL.TiffImagePlugin import PHOTOMETRIC_INTERPRETATION, TiffImageFile

from lingu_ray.content import bytes_identity

SIZE_IN_HEADER = {"BMP", "GIF", "JPEG", "WEBP"}  # other sizes may change on loading; a PNG's orientation is at its end
SIDES_IN_HEADER = SIZE_IN_HEADER | {"PNG"}
DEPTHS = (8, 10, 12, 14, 16)  # bits of gray values that cameras and scanners store in 16
BAND = 1 << 20  # gray values that are scaled at once
WHITE_IS_ZERO = 0  # a TIFF's photometric interpretation
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(encoded: bytes) -> Image.Image:
    """Decode to RGB of 8 bits: the first frame, upright by its EXIF orientation, transparency on white.

    vLLM and the hub's demos put transparency on white, too. Gray values of more than 8 bits are scaled (`_to_8_bits`).

    Raises what PIL raises for broken images: `OSError`, `ValueError`, `SyntaxError`, `Image.DecompressionBombError`, ….
    """
    image = _open(encoded)
    image.load()
    turn = _turn(image)
    if image.mode.startswith(("I", "F")):
        image = _to_8_bits(image)
    return _in_rgb(image if turn is None else image.transpose(turn))


def image_size(encoded: bytes) -> tuple[int, int]:
    """Width and height of what `decode_image` returns, from the header alone if possible."""
    with _open(encoded) as image:
        if image.format not in SIZE_IN_HEADER:
            return decode_image(encoded).size
        width, height = image.size
        on_its_side = _turn(image) in {_TURNS[orientation] for orientation in (5, 6, 7, 8)}
    return (height, width) if on_its_side else (width, height)


def pixels_identity(image: Image.Image) -> str:
    """Identity of a decoded image, however it was encoded: its size (`640x480`), a blank, and a hash of its pixels."""
    return f"{image.width}x{image.height} {bytes_identity(image.tobytes())}"


def pixels_identity_of(encoded: bytes, sides: Container[frozenset[int]]) -> str | None:
    """`pixels_identity` of an encoded image; None if its two sides are not among `sides`, mostly without decoding it.

    Raises what `decode_image` raises.
    """
    with _open(encoded) as image:
        if image.format in SIDES_IN_HEADER and frozenset(image.size) not in sides:
            return None
    return pixels_identity(decode_image(encoded))


def _open(encoded: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(encoded))
    if image.format == "EPS":  # Pillow would run it
        raise ValueError("PostScript is a program, not an image")
    return image


def _turn(image: Image.Image) -> Image.Transpose | None:
    """The transposition that makes an image upright; None if it is upright, or its EXIF data are damaged."""
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # PIL raises many kinds
        return None


def _in_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.buildTransform(lab, srgb, "LAB", "RGB").apply(image)
    if image.mode == "La":  # PIL cannot convert it to RGB directly
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Gray integers or floats as mode `L`, or `LA` where one value is transparent. PIL would clip them to white.

    White is the largest value of the fewest bits (`DEPTHS`) that hold the brightest value, since 12-bit pictures are
    often stored in 16 bits, and no file says so. For floats up to 1 it is 1.

    Raises:
        ValueError: the range of other values is not known.
    """
    values_HW = np.asarray(image)
    bands = np.array_split(values_HW.ravel(), -(-values_HW.size // BAND))  # in float64 all would take gigabytes
    low, high = values_HW.min(), values_HW.max()
    is_unit = image.mode == "F" and high <= 1
    if not (low >= 0 and high < 1 << DEPTHS[-1] and (is_unit or all(np.all(band % 1 == 0) for band in bands))):
        raise ValueError(
            f"gray values from {low:g} to {high:g} (mode {image.mode}) have no known range: "
            f"store whole numbers of up to {DEPTHS[-1]} bits, or floats from 0 to 1"
        )
    white = 1 if is_unit else next((1 << bits) - 1 for bits in DEPTHS if high < 1 << bits)
    gray = [np.round(band.astype(np.float64) * (255 / white)).astype(np.uint8) for band in bands]
    gray_HW = np.concatenate(gray).reshape(values_HW.shape)
    if isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == WHITE_IS_ZERO:
        gray_HW = 255 - gray_HW  # as PIL does for 8 bits
    scaled = Image.fromarray(gray_HW)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        scaled.putalpha(Image.fromarray(np.where(values_HW == transparent, np.uint8(0), np.uint8(255))))
    return scaled
