"""Reads tar archives in one pass; an archive that was cut off is an error, while `tarfile` ends in silence."""

from __future__ import annotations

from collections.abc import Iterator
from io import BufferedIOBase
from tarfile import HeaderError, ReadError, TarFile, TarInfo
from typing import Self

from lingu_ray.corpus.compression import RECORD_BYTES


class _Member(TarInfo):
    """A member of one archive. `ended`: whether the end mark of the archive was the last thing read."""

    ended = False

    @classmethod
    def fromtarfile(cls, tarfile: TarFile) -> Self:
        """The next member; if there is none, the archive must have an end mark.

        This is not done in `frombuf`, since later Pythons do not call it for every header.
        """
        try:
            member = super().fromtarfile(tarfile)
        except HeaderError as error:
            kind = type(error).__name__  # of classes that are not documented
            if kind == "EOFHeaderError":
                cls.ended = True
            elif kind != "EmptyHeaderError":
                raise ReadError(f"the archive is damaged: {error}") from error
            elif not cls.ended:
                raise ReadError("the archive has no end, so it was cut off") from error
            raise
        cls.ended = False
        return member


def members(file: BufferedIOBase) -> Iterator[tuple[str, bytes]]:
    """Name and content of every file in an archive, or in several joined ones, without hidden files.

    Raises:
        ReadError: it is damaged, its end is missing, or a file is too large; a sparse one is its size in zeros.
    """
    of_archive = type("Member", (_Member,), {})
    with TarFile.open(fileobj=file, mode="r|", tarinfo=of_archive, ignore_zeros=True) as archive:
        for member in archive:
            if member.size > RECORD_BYTES:
                raise ReadError(f"{member.name} in it has {member.size:,} bytes, and may have {RECORD_BYTES:,}")
            hidden = member.name.rpartition("/")[2].startswith(".")  # macOS adds one to each file
            if member.isfile() and not hidden and (content := archive.extractfile(member)) is not None:
                yield member.name, content.read()
