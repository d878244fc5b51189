"""Passes: how often a run reads each source's training rows."""

from __future__ import annotations

from typing import Any


def passes(manifest: dict[str, Any], positions: int) -> dict[str, float]:
    """Passes over each source's training rows, by name, when `positions` positions of the corpus order are read.

    The order starts again where it ends, so whole rounds count exactly. Within a round a source's rows are taken as
    proportional to the positions read: the order keeps every source within two rows of its share (`corpus.mix`), so
    the result is less than four rows off.

    Args:
        manifest: content of the corpus' `manifest.json`.
        positions: positions read: steps × rows of a step.
    """
    rounds = positions / manifest["rows"]
    return {
        name: rounds * counts["used"] / (counts["accepted"] - counts["validation"])
        for name, counts in manifest["sources"].items()
    }
