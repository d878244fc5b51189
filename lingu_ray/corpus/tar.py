"""Tar archives, read in one pass; an archive that was cut off is an error, where `tarfile` just ends."""

from __future__ import annotations

from collections.abc import Iterator
from io import BufferedIOBase
from tarfile import HeaderError, ReadError, TarFile, TarInfo
from typing import Self


class _Member(TarInfo):
    """A member of one archive. `ended`: the mark at the archive's end was met, and no member after it."""

    ended = False

    @classmethod
    def fromtarfile(cls, tarfile: TarFile) -> Self:
        """The next member; where there is none, the archive must have ended.

        Not done in `frombuf`: later Pythons read headers past it.
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
    """Name and content of every file in an archive, or in several that were joined; hidden ones are no data.

    Raises:
        ReadError: it is damaged, or its end is missing.
    """
    of_archive = type("Member", (_Member,), {})
    with TarFile.open(fileobj=file, mode="r|", tarinfo=of_archive, ignore_zeros=True) as archive:
        for member in archive:
            hidden = member.name.rpartition("/")[2].startswith(".")  # such as macOS adds to each file
            if member.isfile() and not hidden and (content := archive.extractfile(member)) is not None:
                yield member.name, content.read()
