"""Facts about a setting besides its type, stated once at the setting: `steps: Annotated[int, MAY_CHANGE]`.

A fact at a section holds for everything inside it. A setting without facts gets the strictest treatment: a run is not
resumed with another value, the corpus and its held-out rows depend on it, comparisons of runs show it, sweeps leave it
alone. `lingu_ray.config.tree` finds the settings that a fact holds for.
"""

from __future__ import annotations

from enum import Enum

from pydantic import BaseModel


class Fact(Enum):
    """A fact of a setting."""

    MAY_CHANGE = "a run may be resumed with another value: up to rounding, its result does not depend on it"
    NOT_IN_FINGERPRINT = "left out of the corpus's fingerprint: only training reads it, or file contents stand for it"
    NOT_COMPARED = "left out where runs are compared: it does not change a run's model, or only through other settings"
    SEARCHABLE = "the trials of a sweep may differ in it"
    SAME_HELD_OUT = "the rows that are held out for validation do not depend on it"


MAY_CHANGE = Fact.MAY_CHANGE
NOT_IN_FINGERPRINT = Fact.NOT_IN_FINGERPRINT
NOT_COMPARED = Fact.NOT_COMPARED
SEARCHABLE = Fact.SEARCHABLE
SAME_HELD_OUT = Fact.SAME_HELD_OUT


def fields_with(fact: Fact, section: type[BaseModel]) -> set[str]:
    """Names of a section's own settings that carry the fact."""
    return {name for name, field in section.model_fields.items() if fact in field.metadata}
