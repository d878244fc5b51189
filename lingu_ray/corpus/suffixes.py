"""Suffixes of picture and media files, in lower case."""

from __future__ import annotations

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
PICTURES = IMAGE_SUFFIXES | {".avif", ".ico", ".jfif", ".jp2", ".pgm", ".ppm", ".psd", ".tga"}
ALL_PICTURES = PICTURES | {".heic", ".heif", ".jxl", ".svg"}  # Pillow cannot decode the latter
MEDIA = {".avi", ".flac", ".m4a", ".mkv", ".mov", ".mp3", ".mp4", ".ogg", ".wav", ".webm"}


def last_suffix(name: str) -> str:
    """The last suffix of a file's name, in lower case; a name without a dot counts as a suffix itself."""
    return f".{name.rpartition('.')[2].lower()}"
