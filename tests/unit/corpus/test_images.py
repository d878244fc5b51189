"""Images of every kind become the same RGB everywhere, and their size is known beforehand."""

import io
import itertools
import struct
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps
from tiny import picture

from lingu_ray.corpus.images import decode_image, image_size

MODES = ("1", "L", "P", "LA", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "I", "F", "I;16", "I;16B")
FORMATS = ("PNG", "TIFF", "JPEG", "WEBP", "GIF", "BMP", "PPM", "JPEG2000", "ICO", "TGA")
ORIENTATION, SOFTWARE = 274, 305


def saved(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def gray(*values: float, dtype: str = "uint16") -> Image.Image:
    """A row of pixels; the mode follows from the type."""
    return Image.fromarray(np.array([values], dtype=dtype))


def decoded(encoded: bytes) -> list[tuple[int, ...]]:
    """RGB of the first row."""
    image = decode_image(encoded)
    assert image.mode == "RGB"
    return [tuple(pixel) for pixel in np.asarray(image)[0].tolist()]


def levels(encoded: bytes) -> list[int]:
    """Gray values of the first row."""
    pixels = decoded(encoded)
    assert all(len(set(pixel)) == 1 for pixel in pixels)
    return [pixel[0] for pixel in pixels]


def every_image() -> dict[str, bytes]:
    """Images of every mode in every format that can hold it, with every EXIF orientation, invalid ones too."""
    found = {}
    for mode, format, orientation in itertools.product(MODES, FORMATS, (0, 1, 3, 6, 7, 9)):
        image = Image.new(mode, (6, 4))
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        try:
            found[f"{mode} {format} {orientation}"] = saved(image, format, exif=exif)
        except (OSError, KeyError, ValueError, AssertionError):  # the format does not have the mode
            continue
    return found


def test_the_size_is_that_of_the_decoded_image():
    """`image_size` agrees with `decode_image` for every mode, format and EXIF orientation."""
    images = every_image()
    turned = [name for name, encoded in images.items() if decode_image(encoded).size == (4, 6)]
    assert len(images) > 250 and {name.split()[1] for name in turned} >= {"PNG", "TIFF", "JPEG", "WEBP"}
    assert {name for name, encoded in images.items() if image_size(encoded) != decode_image(encoded).size} == set()


def test_an_orientation_at_the_end_of_a_png_counts():
    """EXIF without one before the pixels, XMP with one behind them, as tools add it: the size is of what is seen."""
    exif = Image.Exif()
    exif[SOFTWARE] = "x"
    encoded = saved(Image.new("RGB", (6, 4)), "PNG", exif=exif)
    chunk = b"iTXt" + b"XML:com.adobe.xmp\0\0\0\0\0" + b'<x tiff:Orientation="6"/>'
    end = encoded.rindex(b"IEND") - 4
    chunk = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    turned = encoded[:end] + chunk + encoded[end:]
    assert image_size(turned) == decode_image(turned).size == (4, 6)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_stand_upright(format, orientation):
    """The EXIF orientation turns the picture once, in each format as Pillow itself would."""
    image = Image.open(io.BytesIO(picture(0, (6, 4))))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = (
        {"lossless": True} if format == "WEBP" else {"quality": 100, "subsampling": "4:4:4"} if format == "AVIF" else {}
    )
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(saved(image, "PNG", exif=exif))))
    difference = np.asarray(decode_image(saved(image, format, exif=exif, **options)), int) - np.asarray(upright, int)
    assert np.abs(difference).max() < (5 if format == "AVIF" else 1)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_turns_nothing():
    """Many a photograph of the web has broken EXIF: it is read as it lies, and so is its size."""
    encoded = saved(Image.new("RGB", (30, 20)), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert decode_image(encoded).size == image_size(encoded) == (30, 20)


@pytest.mark.parametrize(
    ("image", "format", "expected"),
    [
        (gray(0, 257, 32896, 65535), "PNG", [0, 1, 128, 255]),
        (gray(0, 257, 32896, 65535), "TIFF", [0, 1, 128, 255]),
        (gray(0, 257, 32896, 65535, dtype=">u2"), "TIFF", [0, 1, 128, 255]),
        (gray(0, 257, 32896, 65535), "JPEG2000", [0, 1, 128, 255]),
        (gray(0, 257, 32896, 65535, dtype="int32"), "PPM", [0, 1, 128, 255]),
        (gray(0, 2048, 4095), "PNG", [0, 128, 255]),  # 12 bits
        (gray(0, 512, 1023), "PNG", [0, 128, 255]),
        (gray(0, 7, 255), "PNG", [0, 7, 255]),
        (gray(0, 128, 255, dtype="int32"), "TIFF", [0, 128, 255]),
        (gray(0, 0.5, 1, dtype="float32"), "TIFF", [0, 128, 255]),
        (gray(0, 0.25, dtype="float32"), "TIFF", [0, 64]),
        (gray(0, 128, 255, dtype="float32"), "TIFF", [0, 128, 255]),
        (Image.new("1", (2, 1), 1), "PNG", [255, 255]),
        (Image.new("LA", (1, 1), (7, 255)), "PNG", [7]),
        (Image.new("LA", (1, 1), (7, 0)), "PNG", [255]),
        (Image.new("CMYK", (1, 1), (0, 0, 0, 255)), "TIFF", [0]),
        (Image.new("YCbCr", (1, 1), (9, 128, 128)), "TIFF", [9]),
    ],
)
def test_gray_values_are_scaled_to_8_bits(image, format, expected):
    """Whole numbers by the bits that hold them, floats up to 1 by 1: nothing is clipped to white."""
    assert levels(saved(image, format)) == expected


def test_gray_values_are_scaled_a_band_at_a_time():
    """A scan of 16 bits takes a few bytes a pixel, where float64 of all would take sixteen; no pixel is displaced."""
    columns = np.arange(4000, dtype="uint16") * 16
    encoded = saved(Image.fromarray(np.tile(columns, (3000, 1))))
    tracemalloc.start()
    decoded_HW3 = np.asarray(decode_image(encoded))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * decoded_HW3.shape[0] * decoded_HW3.shape[1]
    assert (decoded_HW3 == np.round(columns * (255 / 65535))[:, None]).all()


@pytest.mark.parametrize("image", [gray(0, 257, 65535), gray(0, 1, 255, dtype="uint8")])
def test_a_tiff_may_count_from_white(image):
    """A TIFF whose zero is white, as scanners write them, is no negative, whatever its depth."""
    entry = struct.pack("<HHIH", 262, 3, 1, 1)
    encoded = saved(image, "TIFF")
    assert encoded.count(entry) == 1
    assert levels(encoded.replace(entry, struct.pack("<HHIH", 262, 3, 1, 0))) == [255, 254, 0]


@pytest.mark.parametrize(
    "image",
    [
        gray(0, 70_000, dtype="int32"),
        gray(-1, 5, dtype="int32"),
        gray(-0.5, 0.5, dtype="float32"),
        gray(0, 3.5, dtype="float32"),
        gray(0, float("nan"), dtype="float32"),
        gray(0, float("inf"), dtype="float32"),
    ],
)
def test_gray_values_without_a_known_range_are_refused(image):
    """What white is cannot be told of these: an error names the values and what to store instead."""
    with pytest.raises(ValueError, match=r"gray values from .* have no known range: store whole numbers"):
        decode_image(saved(image, "TIFF"))


def png(bits: int, kind: int, row: bytes, **chunks: bytes) -> bytes:
    """A PNG of one row, written by hand: Pillow writes no colors of 16 bits. `row`: without the filter's byte."""
    width = len(row) * 8 // (bits * {0: 1, 2: 3, 4: 2, 6: 4}[kind])
    parts = {"IHDR": struct.pack(">IIBBBBB", width, 1, bits, kind, 0, 0, 0), **chunks}
    parts |= {"IDAT": zlib.compress(b"\0" + row), "IEND": b""}
    encoded = [
        struct.pack(">I", len(data)) + (body := name.encode() + data) + struct.pack(">I", zlib.crc32(body))
        for name, data in parts.items()
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(encoded)


def test_colors_of_16_bits():
    """16 bits a channel, with alpha or a transparent color, become 8."""
    red, dim = struct.pack(">3H", 65535, 0, 0), struct.pack(">3H", 32768, 65535, 256)
    assert decoded(png(16, 2, red + dim)) == [(255, 0, 0), (128, 255, 1)]
    assert decoded(png(16, 2, red + dim, tRNS=red)) == [(255, 255, 255), (128, 255, 1)]
    assert decoded(png(16, 6, red + b"\xff\xff" + dim + b"\0\0")) == [(255, 0, 0), (255, 255, 255)]
    assert decoded(png(16, 4, struct.pack(">4H", 256, 65535, 256, 0))) == [(1, 1, 1), (255, 255, 255)]
    assert levels(png(16, 0, struct.pack(">3H", 0, 32896, 65535), tRNS=b"\0\0")) == [255, 128, 255]


def test_lab_colors():
    """CIELAB of a TIFF becomes sRGB, up to rounding."""
    red = Image.new("RGB", (1, 1), (200, 30, 60))
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    image = ImageCms.applyTransform(red, ImageCms.buildTransform(srgb, lab, "RGB", "LAB"))
    assert decoded(saved(image, "TIFF"))[0] == pytest.approx((200, 30, 60), abs=2)


def test_transparency_is_shown_on_white():
    """A transparent pixel is white, whatever color lies under it; so are palettes with a transparent entry."""
    image = Image.fromarray(np.array([[[255, 0, 0, 0], [0, 255, 0, 255]]], dtype=np.uint8), "RGBA")
    for mode in ("RGBA", "P"):
        assert decoded(saved(image.convert(mode))) == [(255, 255, 255), (0, 255, 0)]


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(format):
    """The first of two frames, and its size."""
    frames = [Image.new("RGB", (4, 2), color) for color in ("red", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    encoded = saved(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert decoded(encoded)[0] == (255, 0, 0) and image_size(encoded) == (4, 2)


@pytest.mark.parametrize(
    "encoded",
    [
        picture(0, (64, 64))[:-500],
        picture(0, (64, 64), "JPEG")[:-300],
        png(8, 0, b""),  # no pixels
        saved(Image.new("L", (4, 4)), "EPS"),
        b"<svg></svg>",
        b"",
        png(8, 0, b"0").replace(struct.pack(">II", 1, 1), struct.pack(">II", 60_000, 60_000)),
    ],
    ids=["cut_png", "cut_jpeg", "no_pixels", "postscript", "svg", "empty", "bomb"],
)
def test_broken_images_raise(encoded):
    """Cut off, empty, drawn by a program, no image at all, or one that would fill the memory."""
    with pytest.raises((OSError, ValueError, SyntaxError, Image.DecompressionBombError)):
        decode_image(encoded)
