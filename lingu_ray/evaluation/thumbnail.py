"""Small images for pages."""

from __future__ import annotations

import base64
import io

from PIL import Image

from lingu_ray.corpus.images import decode_image

SIDE = 224  # the longest, pixels


def thumbnail(encoded: bytes) -> bytes:
    """An image as a small JPEG."""
    image = decode_image(encoded)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def data_uri(jpeg: bytes) -> str:
    """A JPEG as a `data:` address, so that a page needs no other file."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
