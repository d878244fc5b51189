"""Tar archives, read in one pass; an archive that was cut off is an error, where `tarfile` just ends."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from io import BufferedIOBase


class _Member(tarfile.TarInfo):
    """A member of one archive. `ended`: the mark at the archive's end was met, and no member after it."""

    ended = False

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        """The member that a header describes; where there is none, the archive must have ended."""
        if not buf.strip(b"\0"):
            if not buf and not cls.ended:
                raise tarfile.ReadError("the archive has no end, so it was cut off")
            cls.ended = True
            return super().frombuf(buf, encoding, errors)  # raises what ends the archive
        try:
            member = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"the archive is damaged: {error}") from error
        cls.ended = False
        return member


def members(file: BufferedIOBase) -> Iterator[tuple[str, bytes]]:
    """Name and content of every file in an archive, or in several that were joined; hidden ones are no data.

    Raises:
        tarfile.ReadError: it is damaged, or its end is missing.
    """
    of_archive = type("Member", (_Member,), {})
    with tarfile.open(fileobj=file, mode="r|", tarinfo=of_archive, ignore_zeros=True) as archive:
        for member in archive:
            hidden = member.name.rpartition("/")[2].startswith(".")  # such as macOS adds to each file
            if member.isfile() and not hidden and (content := archive.extractfile(member)) is not None:
                yield member.name, content.read()
