"""What a check found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """What a check found; `cure` says what to do about a warning or an error."""

    check: str
    level: Literal["ok", "warning", "error"]
    message: str
    cure: str = ""


def joined(texts: Sequence[str]) -> str:
    """Texts as one message."""
    return "; ".join(texts)
